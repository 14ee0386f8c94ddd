"""A folder of images and what was asked for them: `images/*.png` and `prompts.jsonl`, both ways.

A line of `prompts.jsonl` holds at least the file (`file` or `image`, by its name or relative to
the folder) and its `prompt`. The same folder may be filled again: what is there is not redone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.image_files import list_images
from core.samples import Record
from core.storage import read_lines, write_atomic

LISTING = "prompts.jsonl"
CAPTIONS = "metadata.jsonl"
"""Captions beside the images, as folders of real images are read everywhere."""


def claim(out: Path, lines: Sequence[Mapping[str, Any]]) -> list[int]:
    """Make the folder, or go on in it; the positions whose image is not there yet.

    Raises `UserError` where the folder holds images that something else was asked for.
    """
    content = _json_lines(lines)
    path = out / LISTING
    if path.is_file() and path.read_bytes() != content:
        raise UserError(f"{out} holds images of other settings: give another --out.")
    if not path.is_file() and (out / "images").is_dir() and any((out / "images").iterdir()):
        raise UserError(f"{out}/images is not empty and has no {LISTING}: give another --out.")
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {out} ({error.strerror}): give another --out.") from error
    if not path.is_file():
        write_atomic(path, content)
    return [i for i, line in enumerate(lines) if not (out / "images" / line["file"]).is_file()]


def write_captions(out: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Let `images/` pass as a folder of real images with captions (`treat --offline`)."""
    captions = [{"file_name": line["file"], "text": line["prompt"]} for line in lines]
    write_atomic(out / "images" / CAPTIONS, _json_lines(captions))


def read(folder: Path) -> dict[Path, str]:
    """Every image of the folder with its prompt, in the order of the names.

    Raises `UserError` for a missing folder, and for an image of which the list says nothing.
    """
    images = list_images(folder / "images")
    said = {
        Path(str(line.get("file", line.get("image", "")))).name: str(line["prompt"])
        for line in read_lines(folder / LISTING)
        if "prompt" in line
    }
    silent = [path.name for path in images if path.name not in said]
    if silent:
        raise UserError(
            f"{folder / LISTING} has no prompt for {silent[0]}: add a line "
            '{"file": NAME, "prompt": TEXT} for every image.'
        )
    return {path: said[path.name] for path in images}


def line_of(record: Record) -> dict[str, Any]:
    """What a listing says of one image."""
    return {
        "file": f"{record.key}.png",
        "prompt": record.prompt,
        "category": record.category,
        "generator": record.generator,
        "seed": record.seed,
    }


def _json_lines(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
