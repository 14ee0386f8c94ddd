"""Parquet files in, as `datasets` writes them: a column of text, and pictures by position, out.

A folder is read as one table: every `.parquet` in it and below, by path. Pictures stand in a
column `image`, as encoded bytes or as a struct with `bytes`. Needs pyarrow.
"""

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.images import MAX_BYTES, Picture, picture_of

IMAGE = "image"
SUFFIX = ".parquet"


class ParquetRows:
    """The rows of a `.parquet` file, or of those of a folder.

    Raises `UserError` for a file that is none, or is damaged.
    """

    def __init__(self, path: Path):
        path = Path(path)
        self.files = [path] if path.is_file() else sorted(path.rglob(f"*{SUFFIX}"))
        self._opened = [_open(file) for file in self.files]
        self._groups = [
            (which, group)
            for which, opened in enumerate(self._opened)
            for group in range(opened.num_row_groups)
        ]
        sizes = [self._opened[w].metadata.row_group(g).num_rows for w, g in self._groups]
        self._starts = [0, *accumulate(sizes)]
        self._held: tuple[int, list[Any]] = (-1, [])
        """The row group that was read last, and its pictures as bytes."""

    def __len__(self) -> int:
        return self._starts[-1]

    def texts(self, names: Sequence[str]) -> list[str]:
        """Of each file the first of these columns that it has; empty where a cell is."""
        return [text for which in range(len(self.files)) for text in self._texts(which, names)]

    def picture(self, row: int) -> Picture:
        """One picture; those of one row group are read together, so go through them in turn."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        group = bisect.bisect_right(self._starts, row) - 1
        if self._held[0] != group:
            which, number = self._groups[group]
            self._require(which, [IMAGE])
            cells = _column(self.files[which], self._opened[which], IMAGE, number)
            self._held = group, cells
        within = row - self._starts[group]
        cell = self._held[1][within]
        name = f"{self.files[self._groups[group][0]]}, row {row}"
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise UserError(f"{name} holds no picture: write its bytes, not its path.")
        if len(content) > MAX_BYTES:
            raise UserError(f"{name} is larger than {MAX_BYTES} bytes; shrink it.")
        return picture_of(content, name)

    def _texts(self, which: int, names: Sequence[str]) -> list[str]:
        name = self._require(which, names)
        cells = _column(self.files[which], self._opened[which], name)
        return [str(cell or "").strip() for cell in cells]

    def _require(self, which: int, names: Sequence[str]) -> str:
        there = self._opened[which].schema_arrow.names
        for name in names:
            if name in there:
                return name
        wanted = " or ".join(f"'{name}'" for name in names)
        raise UserError(f"{self.files[which]} has no column {wanted}, only {', '.join(there)}.")


def _open(file: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet files need pyarrow: install it (pip install pyarrow).") from error
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged or no Parquet file ({_line(error)}).") from error


def _column(file: Path, opened: Any, name: str, group: int | None = None) -> list[Any]:
    """Its cells as Python values: of one row group, or of the whole file."""
    import pyarrow

    try:
        if group is None:
            return opened.read([name]).column(name).to_pylist()
        return opened.read_row_group(group, [name]).column(name).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged ({_line(error)}): download it again.") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
