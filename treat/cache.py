"""Rows that are dear to compute in, the same rows from disk out: what the encoders said, once.

    FOLDER/<digest>/rows-00000000.safetensors   rows [0, chunk) of every tensor, and so on
    FOLDER/<digest>/rows-00000000.sha256        of that file, written after it

The digest names everything the rows depend on, so that nothing stale is ever read; rows that are
not what was written are computed anew.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from core.storage import sha256_file, write_atomic

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
    """`n` rows, row-first in every tensor; chunks that lie there whole are not computed."""

    def __init__(self, folder: Path, n: int, chunk: int = CHUNK):
        self.folder, self.n, self.chunk = Path(folder), n, chunk
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.n

    def fill(self, compute: Callable[[int, int], Rows]) -> "RowCache":
        """`compute(start, stop)` gives rows [start, stop)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, self.n, self.chunk):
            if not self._whole(start):
                rows = compute(start, min(start + self.chunk, self.n))
                packed = {name: tensor.cpu().contiguous() for name, tensor in rows.items()}
                content = safetensors.torch.save(packed)
                write_atomic(self._path(start), content)
                write_atomic(self._note(start), hashlib.sha256(content).hexdigest().encode())
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

    def _whole(self, start: int) -> bool:
        """Whether a chunk is there, byte for byte as it was written."""
        path, note = self._path(start), self._note(start)
        if not (path.is_file() and note.is_file()):
            return False
        same = note.read_bytes() == sha256_file(path).encode()
        if not same:
            print(f"warn: {path} is damaged, its rows are computed anew", file=sys.stderr)
        return same

    def _path(self, start: int) -> Path:
        return self.folder / f"rows-{start:08d}.safetensors"

    def _note(self, start: int) -> Path:
        return self._path(start).with_suffix(".sha256")
