"""Rows that are dear to compute in, the same rows from disk out: what the encoders said, once.

    FOLDER/<digest>/rows-00000000.safetensors   rows [0, chunk) of every tensor, and so on

The digest names everything the rows depend on, so that nothing stale is ever read.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from core.storage import write_atomic

Rows = dict[str, Tensor]
CHUNK = 32
"""Rows computed and written together."""


def digest(parts: Iterable[str | bytes]) -> str:
    """A name for what rows depend on."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()[:16]


class RowCache:
    """`n` rows, row-first in every tensor; chunks that are there already are not computed."""

    def __init__(self, folder: Path, n: int, chunk: int = CHUNK):
        self.folder, self.n, self.chunk = Path(folder), n, chunk
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.n

    @property
    def complete(self) -> bool:
        return all(self._path(start).is_file() for start in range(0, self.n, self.chunk))

    def fill(self, compute: Callable[[int, int], Rows]) -> "RowCache":
        """`compute(start, stop)` gives rows [start, stop)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, self.n, self.chunk):
            if not self._path(start).is_file():
                rows = compute(start, min(start + self.chunk, self.n))
                packed = {name: tensor.cpu().contiguous() for name, tensor in rows.items()}
                write_atomic(self._path(start), safetensors.torch.save(packed))
        return self

    def rows(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Rows:
        found = [self._row(index) for index in indices]
        return {name: torch.stack([row[name] for row in found]).to(device) for name in found[0]}

    def _row(self, index: int) -> Rows:
        start = index - index % self.chunk
        if start not in self._open:
            # Mapped, not read: only the rows asked for are touched.
            self._open[start] = safe_open(self._path(start), framework="pt")
        file = self._open[start]
        return {name: file.get_slice(name)[index - start] for name in file.keys()}  # noqa: SIM118

    def _path(self, start: int) -> Path:
        return self.folder / f"rows-{start:08d}.safetensors"
