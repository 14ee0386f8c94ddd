"""Parquet files in, as `datasets` writes them: a column of text, and pictures by position, out.

A folder is read as one table: every `.parquet` in it and below, by path. Pictures stand in a
column `image`, as encoded bytes or as a struct with `bytes`. Needs pyarrow.

Legend: h w pixels.
"""

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from core.errors import UserError
from core.image_files import MAX_BYTES, decode_image, flatten

Levels = UInt8[np.ndarray, "h w 3"]
IMAGE = "image"
SUFFIX = ".parquet"


class Part(NamedTuple):
    """A row group: what is read at once."""

    file: Path
    group: int


def parquet_files(path: Path) -> list[Path]:
    """The file itself, or those in a folder and below."""
    path = Path(path)
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob(f"*{SUFFIX}") if file.is_file())


class ParquetRows:
    """The rows of a `.parquet` file, or of those of a folder.

    Raises `UserError` where there is none, one is damaged, or (`pictures`) one has no pictures.
    """

    def __init__(self, path: Path, pictures: bool = False):
        self.files = parquet_files(path)
        if not self.files:
            raise UserError(f"there is no Parquet file {path}: check the path.")
        sizes, self._parts = [], []
        for file in self.files:
            with open_parquet(file) as opened:
                if pictures:
                    require_column(file, opened, [IMAGE])
                counted = range(opened.num_row_groups)
                sizes += [opened.metadata.row_group(group).num_rows for group in counted]
                self._parts += [Part(file, group) for group in counted]
        self._starts = [0, *accumulate(sizes)]
        self._held: tuple[int, list[Any]] = (-1, [])
        """The row group that was read last, and its pictures as bytes."""

    def __len__(self) -> int:
        return self._starts[-1]

    def texts(self, names: Sequence[str]) -> list[str]:
        """Of each file the first of these columns that it has; empty where a cell is."""
        return [text for file in self.files for text in _texts(file, names)]

    def picture(self, row: int) -> Levels:
        """Levels of one; those of one row group are read together, so go through them in turn."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        which = bisect.bisect_right(self._starts, row) - 1
        file, group = self._parts[which]
        if self._held[0] != which:
            with open_parquet(file) as opened:
                self._held = which, column(file, opened, IMAGE, group)
        cell = self._held[1][row - self._starts[which]]
        name = f"{file}, row {row}"
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise UserError(f"{name} holds no picture: write its bytes, not its path.")
        if len(content) > MAX_BYTES:
            raise UserError(f"{name} is larger than {MAX_BYTES} bytes; shrink it.")
        return flatten(decode_image(content, name))


def _texts(file: Path, names: Sequence[str]) -> list[str]:
    with open_parquet(file) as opened:
        name = require_column(file, opened, names)
        cells = column(file, opened, name)
    other = [cell for cell in cells if not (cell is None or isinstance(cell, str))]
    if other:
        kind = type(other[0]).__name__
        raise UserError(f"'{name}' of {file} holds a {kind} where a text should be: write texts.")
    return [(cell or "").strip() for cell in cells]


def require_column(file: Path, opened: Any, names: Sequence[str]) -> str:
    """The first of these columns that a file has."""
    there = column_names(file, opened)
    for name in names:
        if name in there:
            return name
    wanted = " or ".join(f"'{name}'" for name in names)
    raise UserError(f"{file} has no column {wanted}, only {', '.join(there)}.")


def column_names(file: Path, opened: Any) -> list[str]:
    try:
        return opened.schema_arrow.names
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged ({_line(error)}): download it again.") from error


def open_parquet(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet files need pyarrow: install it (pip install pyarrow).") from error
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged or no Parquet file ({_line(error)}).") from error


def column(file: Path, opened: Any, name: str, group: int | None = None) -> list[Any]:
    """Its cells as Python values: of one row group, or of the whole file."""
    import pyarrow

    try:
        rows = opened.read([name]) if group is None else opened.read_row_group(group, [name])
        return rows.column(name).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged ({_line(error)}): download it again.") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
