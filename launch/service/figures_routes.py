"""What a job's page shows beside the job: its figures as curves, the pictures of its folder, and
what a detector makes of held-out images.

A picture is named by numbers alone, so that no name of a caller's becomes a path.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from launch.service.database import Row
from launch.service.faults import Missing
from launch.service.figure_shapes import Curves, HeldOut, Pictures
from launch.service.guard import READ, Route
from launch.service.jobs_routes import JOBS, House, Who, found, run_folder

POINTS = 400
"""Of one curve: more than a screen has room for."""
RECENT = 20_000
"""Steps whose figures are looked through."""
NAMES = 64
"""Curves of a job."""
PROMPTS = 64
"""Prompts that are watched and shown."""
LARGEST = 32 << 20
"""Bytes of a picture."""
MOST = 4 << 20
"""Bytes of a detector's figures."""
PNG = b"\x89PNG\r\n\x1a\n"
_SHEET = re.compile(r"step-\d{8,18}\.png", re.ASCII)
_LOOK = re.compile(r"step-(\d{8,18})", re.ASCII)
_CELL = re.compile(r"(step-\d{8,18})-(\d{5})(-map)?\.png", re.ASCII)
_CASE = re.compile(r"worst-(\d{5}-(?:image|label|map)\.png)", re.ASCII)


def read_figures(job_id: str, who: Who, house: House) -> Any:
    """Every figure of a job by its name, as (step, value); long ones thinned, ends kept.

    `last` names the newest event that is in them: a stream goes on after it.
    """
    row = found(house, who, job_id)
    last, data = house.jobs.figures(row["id"], RECENT)
    return {"last": f"ftevent-{last}", "curves": curves(data)}


def curves(data: Iterable[Row]) -> dict[str, list[tuple[int, float]]]:
    """Figures of steps in, in their order; curves out."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for one in data:
        for name, value in one.items():
            sound = isinstance(value, int | float) and math.isfinite(value)
            if name != "step" and sound and (name in lines or len(lines) < NAMES):
                lines.setdefault(name, []).append((one["step"], float(value)))
    return {name: thinned(line) for name, line in lines.items()}


def thinned(line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    if len(line) <= POINTS:
        return line
    last = len(line) - 1
    return [line[round(i * last / (POINTS - 1))] for i in range(POINTS)]


def list_pictures(job_id: str, who: Who, house: House) -> Any:
    """The pictures of a job's run folder, the oldest first.

    `sheets`: base, treated and their maps, a line a prompt. `looks`: the same prompts and seeds,
    one picture each and its artifact map in gray, at the steps that were watched; step 0 is the
    base.
    """
    folder = run_folder(house, found(house, who, job_id))
    sheets = [name for name in _entries(folder / "pictures") if _SHEET.fullmatch(name)]
    looks = [name for name in _entries(folder / "watched") if _LOOK.fullmatch(name)]
    return {
        "sheets": [{"name": one, "step": int(one[5:-4])} for one in sheets],
        "looks": [
            {
                "step": int(one[5:]),
                "names": _cells(folder, one, ""),
                "maps": _cells(folder, one, "maps"),
            }
            for one in looks
        ],
        "prompts": _prompts(folder / "watched/prompts.jsonl"),
    }


def read_held_out(job_id: str, who: Who, house: House) -> Any:
    """What a detector makes of the images that it did not learn from; empty for other jobs.

    `groups`: figures by source, category and generator. `reliability`: what was predicted, and what
    is labelled. `worst`: the images with the largest error, and the names of their pictures.
    """
    folder = run_folder(house, found(house, who, job_id))
    content = _content(folder, "held_out.json", MOST)
    try:
        told = HeldOut.model_validate_json(content or b"{}")
    except ValidationError:  # of a later version
        return HeldOut()
    for number, case in enumerate(told.worst):
        case.image, case.label, case.map = (
            f"worst-{number:05d}-{kind}.png" for kind in ("image", "label", "map")
        )
    return told


def read_picture(job_id: str, name: str, who: Who, house: House) -> Any:
    """One of the list's pictures, as PNG."""
    folder = run_folder(house, found(house, who, job_id))
    place = picture_place(name)
    content = None if place is None else _content(folder, place, LARGEST)
    if content is None or not content.startswith(PNG):
        raise Missing("picture", name)
    return Response(content, media_type="image/png")


def picture_place(name: str) -> str | None:
    """Within the run folder; None for what is no name of the list's."""
    if _SHEET.fullmatch(name):
        return f"pictures/{name}"
    if match := _CELL.fullmatch(name):
        return f"watched/{match[1]}/{'maps/' if match[3] else ''}{match[2]}.png"
    if match := _CASE.fullmatch(name):
        return f"held_out/{match[1]}"
    return None


def _cells(folder: Path, look: str, within: str) -> list[str]:
    found = _entries(folder / "watched" / look / within)
    end = "-map.png" if within else ".png"
    names = [f"{look}-{name.removesuffix('.png')}{end}" for name in found if name.endswith(".png")]
    return [name for name in names if _CELL.fullmatch(name)][:PROMPTS]


def _entries(folder: Path) -> Sequence[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if not path.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _content(folder: Path, place: str, largest: int) -> bytes | None:
    """None where there is no such file, where a link leads elsewhere, or where it is larger."""
    path = folder / place
    if path.resolve() != folder.resolve() / place:
        return None
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            content = stream.read(largest + 1)
    except OSError:
        return None
    return content if len(content) <= largest else None


def _prompts(path: Path) -> list[str]:
    try:
        with path.open("rb") as stream:
            lines = stream.read(1 << 20).splitlines()[:PROMPTS]
        return [str(json.loads(line)["prompt"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        return []


ROUTES = [
    Route("GET", f"{JOBS}/{{job_id}}/figures", read_figures, READ,
          {"response_model": Curves}),
    Route("GET", f"{JOBS}/{{job_id}}/held_out", read_held_out, READ,
          {"response_model": HeldOut}),
    Route("GET", f"{JOBS}/{{job_id}}/pictures", list_pictures, READ,
          {"response_model": Pictures}),
    Route("GET", f"{JOBS}/{{job_id}}/pictures/{{name}}", read_picture, READ,
          {"response_class": Response, "responses": {200: {"content": {"image/png": {}}}}}),
]  # fmt: skip
