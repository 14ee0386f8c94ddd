"""SynthScars in: {train,test}/images/ and annotations/*.json; its polygons as masks out."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, FiniteFloat

from core.errors import UserError
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import (
    Strict,
    Text,
    checked,
    inside,
    once,
    printable,
    read_json,
    read_levels,
    refused,
    rows,
)
from data_balancing.formats.shapes import polygons

WHAT = "{train,test}/images/*.jpg and {train,test}/annotations/{train,test}.json"
SPLITS = ("train", "test")
ANNOTATIONS = ("annotations", "annoations")
"""The second is how the published set spells it."""
LICENCE = "Apache-2.0"


class Ref(Strict):
    """One fault: polygons [x1, y1, x2, y2, ...] in pixels."""

    segmentation: list[list[FiniteFloat]] = Field(min_length=1)


class Scars(Strict):
    img_file_name: Text
    caption: Text | None = None
    refs: list[Ref]


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    """With `images` given, each split's pictures lie in its folder of the split's name."""
    places = [root / split / name for split in SPLITS for name in ANNOTATIONS]
    files = [path for place in places for path in sorted(place.glob(f"{place.parent.name}.json"))]
    if not files:
        raise UserError(f"{root} is no SynthScars: it needs {WHAT}.")
    parts = [(file, rows(read_json(file), str(file))) for file in files]
    return once(
        entry
        for file, records in parts
        for entry in _entries(
            file.stem, records, images / file.stem if images else file.parents[1] / "images"
        )
    )


def _entries(split: str, records: list[Any], folder: Path) -> Iterator[Entry]:
    for number, record in enumerate(records):
        if not isinstance(record, dict) or not record:
            reason = f"record {number} of {split} is no {{id: annotation}}; mend or remove it."
            yield refused(f"{split}/record {number}", reason)
            continue
        for key, value in record.items():
            name = printable(f"{split}/{key}")
            yield Entry(name, partial(_read, folder, value, name))


def _read(folder: Path, value: Any, name: str) -> Labelled:
    scars = checked(Scars, value, name)
    shapes = [flat for ref in scars.refs for flat in ref.segmentation]
    if any(len(flat) % 2 for flat in shapes):
        raise UserError(f"a polygon of {name} has an x without a y; mend it.")
    image = read_levels(inside(folder, scars.img_file_name))
    points = [list(zip(flat[::2], flat[1::2], strict=True)) for flat in shapes]
    mask = polygons(points, image.shape[:2], name)
    return Labelled(image, mask, {"source": "human", "caption": scars.caption, "licence": LICENCE})
