"""COCO: instances with a run-length guess out, polygons and run lengths of either kind back.

    to_annotate.json     images and annotations (mask cut at half, its mean level as `score`)
    images/KEY.png

COCO names no annotator: it is `info.contributor`, else the file's own name, so that several people
are several files in a folder. The score is a detector's and not read back: what a person leaves
standing is marked.

Legend: h w pixels.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from core.errors import UserError
from core.storage import write_atomic
from data_balancing.annotation.cases import (
    HALF,
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
from data_balancing.annotation.outlines import coco_masks, polygon_mask
from data_balancing.annotation.runs import from_runs

MOST_BITS = 40
"""Of a count in compressed run lengths; no image has as many pixels."""


class Info(BaseModel):
    version: str | None = None
    contributor: str | None = None
    date_created: str | None = None


class Picture(BaseModel):
    id: int
    file_name: str
    height: int
    width: int


class Runs(BaseModel):
    size: tuple[int, int]
    counts: str | list[int]


class Instance(BaseModel):
    image_id: int
    segmentation: Runs | list[list[float]]


class Export(BaseModel):
    info: Info = Info()
    images: list[Picture]
    annotations: list[Instance] = []


def write(cases: Sequence[Case], folder: Path) -> Path:
    """The JSON's path."""
    images, instances = [], []
    for i, case in enumerate(cases, start=1):
        write_images([case], folder)
        height, width = case.image.shape[:2]
        name = f"{case.key}.png"
        images.append({"id": i, "file_name": name, "height": height, "width": width})
        if case.guess is not None and case.guess.max(initial=0) >= HALF:
            instances.append({"id": len(instances) + 1, "image_id": i, **_instance(case.guess)})
    whole = {
        "info": {"description": "cases of diffdoctor to annotate", "version": "1.0"},
        "licenses": [],
        "categories": [{"id": 1, "name": LABEL, "supercategory": ""}],
        "images": images,
        "annotations": instances,
    }
    path = folder / f"{SENT}.json"
    write_atomic(path, json.dumps(whole).encode())
    return path


def read(path: Path, sizes: Mapping[str, Size]) -> Iterator[Annotation]:
    """The annotations of every image of the exports."""
    for file in exports(path, (".json",)):
        whole = checked(Export, read_json(file), str(file))
        who, when = whole.info.contributor or file.stem, whole.info.date_created or ""
        tool = f"coco {whole.info.version or ''}".strip()
        made: dict[int, list[Instance]] = {image.id: [] for image in whole.images}
        for instance in whole.annotations:
            if instance.image_id not in made:
                raise UserError(f"{file} lacks the image {instance.image_id}; export it again.")
            made[instance.image_id].append(instance)
        for image in whole.images:
            key = Path(image.file_name).stem
            size, where = size_of(sizes, key, str(file)), f"{file}: {key}"
            check_size((image.height, image.width), size, where)
            masks = (_mask(instance, size, where) for instance in made[image.id])
            yield Annotation(key, who, merged(masks, size), when, tool)


def encode_mask(mask: Mask) -> dict[str, Any]:
    """Compressed run lengths of what reaches half, column by column."""
    found = coco_masks().encode(np.asfortranarray(mask >= HALF, np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def decode_runs(counts: str | Sequence[int], size: Size, where: str) -> Mask:
    """The mask, 0 and 255, of run lengths of either kind; `UserError` unless they fill it.

    Not by pycocotools, whose C code trusts the text that it reads.
    """
    height, width = size
    runs = _uncompressed(counts, where) if isinstance(counts, str) else counts
    row = from_runs(runs, height * width, where)
    return np.ascontiguousarray(row.reshape(width, height).T) * np.uint8(255)


def _instance(guess: Mask) -> dict[str, Any]:
    marked = guess >= HALF
    rows, columns = np.nonzero(marked)
    left, top = int(columns.min()), int(rows.min())
    box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
    return {
        "category_id": 1,
        "segmentation": encode_mask(guess),
        "area": len(rows),
        "bbox": box,
        "iscrowd": 1,  # which says "run lengths" to COCO's readers
        "score": round(float(guess[marked].mean()) / 255, 4),
    }


def _mask(instance: Instance, size: Size, where: str) -> Mask:
    shape = instance.segmentation
    if isinstance(shape, Runs):
        check_size(shape.size, size, where)
        return decode_runs(shape.counts, size, where)
    if not any(shape):
        raise UserError(f"{where}: an annotation is a box alone; draw a polygon or mask.")
    if any(len(flat) % 2 for flat in shape):
        raise UserError(f"{where}: a polygon has half a point; export it again.")
    outlines = (list(zip(flat[::2], flat[1::2], strict=True)) for flat in shape)
    return merged((polygon_mask(points, size, where) for points in outlines), size)


def _uncompressed(text: str, where: str) -> list[int]:
    """Counts in groups of 5 bits, lowest first; from the fourth on as differences to the one
    before the last."""
    counts: list[int] = []
    value = bits = 0
    for letter in text:
        group = ord(letter) - 48
        if not 0 <= group < 64 or bits > MOST_BITS:
            raise UserError(f"{where}: the compressed run lengths are damaged; export them again.")
        value |= (group & 31) << bits
        bits += 5
        if group & 32:  # more of this count follows
            continue
        if group & 16:
            value -= 1 << bits
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = bits = 0
    if bits:
        raise UserError(f"{where}: the compressed run lengths end early; export them again.")
    return counts
