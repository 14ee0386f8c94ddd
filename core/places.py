"""Lists of members as an index has them in, one compact table of where each lies out.

Objects of Python would take six times the memory: a million samples have three million members.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

NONE = -1
"""The offset of a member that a sample does not have."""
DIGEST = 32
"""Bytes of a sha256."""


class Place(NamedTuple):
    """Of one member: bytes from the tar's start, its length, and the digest of its content."""

    offset: int
    size: int
    sha256: str


class Table(NamedTuple):
    """Of one kind of member, by sample."""

    offsets: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray


class Places:
    """Filled shard by shard, then joined, then asked."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Table]] = []
        self._counts: list[int] = []
        self._tables: dict[str, Table] = {}

    def add(self, samples: Sequence[dict[str, Any]]) -> None:
        """The members of a shard's samples, as its index has them."""
        kinds = {kind for members in samples for kind in members}
        self._parts.append({kind: _table([m.get(kind) for m in samples]) for kind in kinds})
        self._counts.append(len(samples))

    def joined(self) -> "Places":
        kinds = {kind for part in self._parts for kind in part}
        for kind in kinds:
            parts = zip(self._parts, self._counts, strict=True)
            tables = [part.get(kind) or _table([None] * count) for part, count in parts]
            self._tables[kind] = Table(
                *(np.concatenate(columns) for columns in zip(*tables, strict=True))
            )
        self._parts, self._counts = [], []
        return self

    def of(self, i: int, kind: str) -> Place | None:
        table = self._tables.get(kind)
        if table is None or table.offsets[i] == NONE:
            return None
        return Place(int(table.offsets[i]), int(table.sizes[i]), table.digests[i].tobytes().hex())


def _table(places: Sequence[dict[str, Any] | None]) -> Table:
    blank = {"offset": NONE, "bytes": 0, "sha256": "00" * DIGEST}
    given = [blank if place is None else place for place in places]
    digests = bytes.fromhex("".join(place["sha256"] for place in given))
    return Table(
        np.array([place["offset"] for place in given], np.int64),
        np.array([place["bytes"] for place in given], np.int64),
        np.frombuffer(digests, np.uint8).reshape(len(given), DIGEST),
    )
