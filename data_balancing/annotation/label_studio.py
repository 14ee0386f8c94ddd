"""Label Studio: tasks with a brush guess out, brush regions of several annotators back.

    to_annotate.json     tasks to import, the guess as a prediction; where they are too many for one
                         file: to_annotate-001.json, to_annotate-002.json ...
    label_config.xml     the labelling interface to paste
    images/KEY.png       served by Label Studio's local storage, whose document root
                         (LOCAL_FILES_DOCUMENT_ROOT) is the folder above this one

The brush is thi.ng's rle-pack over the RGBA image, of which the alpha is the mask: soft masks
survive. An annotator who annotated a task twice counts by the later time; skipped tasks do not.

Legend: h w pixels, n words.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from core.errors import UserError
from core.storage import primitives, write_atomic
from data_balancing.annotation.cases import (
    INTERFACE,
    LABEL,
    SENT,
    Annotation,
    Case,
    Mask,
    Size,
    check_size,
    checked,
    exports,
    merged,
    read_json,
    size_of,
    write_images,
)
from data_balancing.annotation.rle_pack import pack, unpack

BRUSHES = ("brushlabels", "brush")
PART = 64 << 20
"""Bytes of a file of tasks at most, unless one task has more: a tool reads it in one go."""
CONFIG = f"""<View>
  <Header value="$prompt"/>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="mask" toName="image">
    <Label value="{LABEL}" background="#ff0000"/>
  </BrushLabels>
</View>
"""


class Value(BaseModel):
    format: str | None = None
    rle: list[int] | None = None


class Region(BaseModel):
    """One item of a result: a brush, or a choice, a text, ..."""

    type: str = ""
    original_width: int = 0
    original_height: int = 0
    image_rotation: float | None = 0
    value: Value = Value()


class Person(BaseModel):
    id: int | None = None
    email: str | None = None


class Work(BaseModel):
    """What one person made of one task."""

    completed_by: int | str | Person | None = None
    result: list[Region] = []
    was_cancelled: bool | None = False
    created_at: str | None = None
    updated_at: str | None = None
    lead_time: float | None = None

    @property
    def annotator(self) -> str:
        who = self.completed_by
        if isinstance(who, Person):
            who = who.email or who.id
        return "unknown" if who is None else str(who)

    @property
    def when(self) -> str:
        return self.updated_at or self.created_at or ""


class Task(BaseModel):
    data: dict[str, Any]
    annotations: list[Work] = []

    @property
    def key(self) -> str:
        return str(self.data.get("key") or Path(str(self.data.get("image", ""))).stem)


class Export(BaseModel):
    tasks: list[Task]


def write(cases: Sequence[Case], folder: Path) -> Path:
    """The tasks' path, or the pattern of several; predictions carry the guess as it is, soft."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / INTERFACE, CONFIG.encode())
    paths = []
    for number, tasks in enumerate(_parts(_task(case, folder) for case in cases), 1):
        paths.append(folder / f"{SENT}-{number:03d}.json")
        write_atomic(paths[-1], b"[" + b",".join(tasks) + b"]")
    if len(paths) > 1:
        return folder / f"{SENT}-*.json"
    primitives.rename(paths[0], folder / f"{SENT}.json")
    return folder / f"{SENT}.json"


def read(path: Path, sizes: Mapping[str, Size]) -> Iterator[Annotation]:
    """The annotations of exports in the format JSON (not JSON-MIN, which lacks who and when)."""
    for file in exports(path, (".json",)):
        for task in checked(Export, {"tasks": read_json(file)}, str(file)).tasks:
            if task.annotations:
                yield from _of_task(task, size_of(sizes, task.key, str(file)), str(file))


def encode_mask(mask: Mask) -> list[int]:
    """The bytes of a mask as a brush, gray in all four channels as the tool's converter does."""
    return list(pack(np.repeat(mask.ravel(), 4)))


def decode_mask(rle: Sequence[int], size: Size, where: str) -> Mask:
    """The alpha channel of a brush; `UserError` unless it fills an image of that size."""
    try:
        content = bytes(rle)
    except ValueError as error:
        raise UserError(f"{where}: the brush is no list of bytes; export it again.") from error
    words = unpack(content, size[0] * size[1] * 4, where)
    return words.reshape(*size, 4)[..., 3].copy()


def _task(case: Case, folder: Path) -> bytes:
    write_images([case], folder)
    place = f"/data/local-files/?d={folder.absolute().name}/images/{case.key}.png"
    data = {"image": place, "key": case.key, "prompt": case.prompt}
    guesses = [] if case.guess is None else [_prediction(case.guess)]
    return json.dumps({"data": data, "predictions": guesses}, separators=(",", ":")).encode()


def _parts(tasks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Those of each file: as many as `PART` holds, one at least."""
    part, size = [], 0
    for task in tasks:
        if part and size + len(task) > PART:
            yield part
            part, size = [], 0
        part.append(task)
        size += len(task) + 1
    yield part


def _of_task(task: Task, size: Size, file: str) -> Iterator[Annotation]:
    latest: dict[str, Work] = {}
    for work in sorted(task.annotations, key=lambda work: work.when):
        if not work.was_cancelled:
            latest[work.annotator] = work
    for name, work in latest.items():
        where = f"{file}: {task.key} by {name}"
        mask = merged(_brushes(work.result, size, where), size)
        yield Annotation(task.key, name, mask, work.when, "label_studio", work.lead_time)


def _brushes(result: Sequence[Region], size: Size, where: str) -> Iterator[Mask]:
    for region in result:
        if region.type not in BRUSHES:
            if region.type.endswith("labels"):  # of another shape; a choice or a text is no mask
                raise UserError(f"{where} is marked with {region.type}; mark it with the brush.")
            continue
        if region.image_rotation:
            raise UserError(f"{where} was rotated in the tool; turn it back and brush it again.")
        if region.value.format != "rle" or region.value.rle is None:
            raise UserError(f"{where} has a brush without RLE; export it in the format JSON.")
        check_size((region.original_height, region.original_width), size, where)
        yield decode_mask(region.value.rle, size, where)


def _prediction(guess: Mask) -> dict[str, Any]:
    height, width = guess.shape
    value = {"format": "rle", "rle": encode_mask(guess), "brushlabels": [LABEL]}
    region = {
        "id": "guess",
        "type": "brushlabels",
        "from_name": "mask",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
    }
    score = round(float(guess.max(initial=0)) / 255, 4)
    result = [region] if guess.any() else []
    return {"model_version": "diffdoctor", "score": score, "result": result}
