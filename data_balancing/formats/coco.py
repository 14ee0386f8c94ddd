"""COCO instances in: a JSON of images and annotations, and a folder of images; one mask each out.

All categories are one artifact: their masks are laid over each other.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat

from core.errors import UserError
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import (
    Strict,
    Text,
    checked,
    inside,
    once,
    read_json,
    read_levels,
    refused,
    require_size,
    rows,
)
from data_balancing.formats.shapes import polygons, run_lengths

WHAT = "a JSON of COCO instances, or a folder with such (or annotations/*.json), and images/"


class Picture(Strict):
    file_name: Text
    height: int | None = None
    width: int | None = None


class Runs(Strict):
    size: list[int]
    counts: Text | list[int]


class Instance(Strict):
    segmentation: list[list[FiniteFloat]] | Runs


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    """Images lie in `images`, else in images/ beside the JSON, else beside it; an image without
    annotations has been looked at and is sound."""
    places = [root, root / "annotations"]
    files = [root] if root.is_file() else [f for p in places for f in sorted(p.glob("*.json"))]
    if not files:
        raise UserError(f"{root} is no COCO set: it needs {WHAT}.")
    top = root.parent if root.is_file() else root
    folder = images or (top / "images" if (top / "images").is_dir() else top)
    parts = [(file, _top(file)) for file in files]
    return once(
        entry
        for file, (pictures, annotations) in parts
        for entry in _entries(file.stem, pictures, annotations, folder)
    )


def _top(file: Path) -> tuple[list[Any], list[Any]]:
    whole = read_json(file)
    if not isinstance(whole, dict) or not isinstance(whole.get("annotations"), list):
        raise UserError(f"{file} has no list 'annotations': it is no JSON of COCO instances.")
    return rows(whole.get("images"), f"'images' of {file}"), whole["annotations"]


def _entries(of: str, pictures: list, annotations: list, folder: Path) -> Iterator[Entry]:
    ids = Counter(_id(picture, "id") for picture in pictures)
    found: dict[int, list[Any]] = {}
    for number, annotation in enumerate(annotations):
        owner = _id(annotation, "image_id")
        if owner is None or owner not in ids:
            reason = f"annotation {number} of {of} belongs to no image; mend or remove it."
            yield refused(f"{of}:annotation {number}", reason)
        else:
            found.setdefault(owner, []).append(annotation)
    for number, picture in enumerate(pictures):
        owner = _id(picture, "id")
        if owner is None or ids[owner] > 1:
            reason = f"image {number} of {of} has no id of its own; mend or remove it."
            yield refused(f"{of}:image {number}", reason)
            continue
        named = picture.get("file_name")
        name = named if isinstance(named, str) else f"{of}:image {number}"
        yield Entry(name, partial(_read, folder, picture, found.get(owner, []), f"image {owner}"))


def _id(value: Any, key: str) -> int | None:
    found = value.get(key) if isinstance(value, dict) else None
    return found if type(found) is int else None  # True is no id


def _read(folder: Path, value: Any, annotations: list[Any], name: str) -> Labelled:
    picture = checked(Picture, value, name)
    instances = [checked(Instance, one, f"an annotation of {name}") for one in annotations]
    image = read_levels(inside(folder, picture.file_name))
    h, w = image.shape[:2]
    require_size((picture.height or h, picture.width or w), image, name)
    mask = np.zeros((h, w), np.uint8)
    for instance in instances:
        np.maximum(mask, _mask(instance.segmentation, h, w, name), out=mask)
    return Labelled(image, mask, {"source": "human"})


def _mask(shape: list[list[float]] | Runs, h: int, w: int, name: str) -> np.ndarray:
    if isinstance(shape, Runs):
        if shape.size != [h, w]:
            raise UserError(f"a mask of {name} is {shape.size}, not [{h}, {w}]; mend it.")
        return run_lengths(shape.counts, (h, w), name)
    if not shape or any(len(flat) % 2 for flat in shape):
        raise UserError(f"an annotation of {name} has no polygon of x and y; mend it.")
    return polygons([list(zip(f[::2], f[1::2], strict=True)) for f in shape], (h, w), name)
