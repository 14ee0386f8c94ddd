"""HADM in: images/<split>/ and annotations/<split>/<stem>.json; its boxes as weak masks out.

The set's `info.pkl` holds prompts and is not read: unpickling runs what its author wrote.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydantic import AliasChoices, Field, FiniteFloat

from core.errors import UserError
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import (
    Strict,
    Text,
    by_stem,
    checked,
    only,
    printable,
    read_json,
    read_levels,
    require_size,
    walk,
)
from data_balancing.formats.shapes import boxes

WHAT = "images/<split>/ and annotations/<split>/<stem>.json"


class Box(Strict):
    bbox: list[FiniteFloat]


class Human(Box):
    """A whole person; the tags say what it has too much or too little of."""

    tag: Text | list[Text] = Field([], validation_alias=AliasChoices("tag", "tags"))


class Size(Strict):
    height: int
    width: int


class Scene(Strict):
    image: Size | None = None
    annotation: list[Box]
    human: list[Human] = []


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    """An annotation of nobody and nothing is a clean photograph; a person without tags is sound."""
    folder = root / "annotations"
    splits = sorted(path.name for path in folder.glob("*") if path.is_dir())
    if not splits:
        raise UserError(f"{root} is no HADM: it needs {WHAT}.")
    for split in splits:
        scenes = by_stem(walk(folder / split, (".json",), deep=False))
        place = (images or root / "images") / split
        pictures = by_stem(walk(place, deep=False) if place.is_dir() else [])
        for stem in sorted({*scenes, *pictures}):
            yield Entry(printable(f"{split}/{stem}"), partial(_read, pictures, scenes, stem))


def _read(pictures: dict, scenes: dict, stem: str) -> Labelled:
    path, file = only(pictures, stem, "image"), only(scenes, stem, "annotation")
    scene = checked(Scene, read_json(file), str(file))
    image = read_levels(path)
    if scene.image:
        require_size((scene.image.height, scene.image.width), image, stem)
    faults = [*scene.annotation, *(human for human in scene.human if human.tag)]
    mask = boxes([fault.bbox for fault in faults], image.shape[:2], printable(stem))
    clean = not scene.annotation and not scene.human
    return Labelled(image, mask, {"source": "real" if clean else "human"})
