"""X-AIGD in: parquet files of image, generator, uid and labelled polygons; masks out."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat

from core.errors import UserError
from core.image_files import MAX_BYTES, decode_image, flatten
from core.parquet import column, column_names, open_parquet, parquet_files, require_column
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import Strict, Text, checked, printable, refused
from data_balancing.formats.shapes import polygons

WHAT = ".parquet files with the columns image, generator, uid and labels"
REQUIRED = ("image", "labels")
COLUMNS = (*REQUIRED, "generator")
LICENCE = "Apache-2.0"


class Region(Strict):
    """One fault: a label of seven, which is not kept, and corners [x, y] in pixels."""

    points: list[list[FiniteFloat]]


class Encoded(Strict):
    bytes: bytes


class Row(Strict):
    image: Encoded | bytes
    generator: Text | None = None
    labels: list[Region] | None = None
    """None is how parquet may say: no region."""


class Groups:
    """The rows of a file; the row group that was read last is held, encoded."""

    def __init__(self, file: Path):
        self.file = file
        with open_parquet(file) as opened:
            for name in REQUIRED:
                require_column(file, opened, [name])
            self.columns = [name for name in COLUMNS if name in column_names(file, opened)]
            counted = range(opened.num_row_groups)
            self.sizes = [opened.metadata.row_group(group).num_rows for group in counted]
        self._held: tuple[int, list[tuple]] = (-1, [])

    def row(self, group: int, place: int) -> dict[str, Any]:
        """Rows of one group are read together, so go through them in turn."""
        if self._held[0] != group:
            self._held = (-1, [])  # never two at once
            with open_parquet(self.file) as opened:
                cells = [column(self.file, opened, name, group) for name in self.columns]
            if any(len(rows) != self.sizes[group] for rows in cells):
                raise UserError(f"{self.file} is damaged (its columns differ): download it again.")
            self._held = group, list(zip(*cells, strict=True))
        return dict(zip(self.columns, self._held[1][place], strict=True))


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    """A file that cannot be opened is one entry that says so; others are read on."""
    files = parquet_files(root)
    if not files:
        raise UserError(f"{root} is no X-AIGD: it needs {WHAT}.")
    for file in files:
        name = printable(file.stem if file == root else str(file.relative_to(root)))
        try:
            groups = Groups(file)
        except UserError as error:
            yield refused(name, str(error))
            continue
        number = 0
        for group, size in enumerate(groups.sizes):
            for place in range(size):
                one = f"{name}:{number}"
                yield Entry(one, partial(_read, groups, group, place, one))
                number += 1


def _read(groups: Groups, group: int, place: int, name: str) -> Labelled:
    row = checked(Row, groups.row(group, place), name)
    content = row.image if isinstance(row.image, bytes) else row.image.bytes
    if len(content) > MAX_BYTES:
        raise UserError(f"{name} is larger than {MAX_BYTES} bytes; shrink it.")
    image = np.array(flatten(decode_image(content, name)))
    mask = polygons([region.points for region in row.labels or []], image.shape[:2], name)
    said = {"source": "human", "generator": row.generator or "", "licence": LICENCE}
    return Labelled(image, mask, said)
