"""Records in, the group that each belongs to out: what must not stand on both sides of a split.

One prompt is one group; images that look alike join the groups of their prompts.

Legend: n samples, g groups.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from core.samples import Record

NEAR = 3
"""Bits of 64 by which perceptual hashes of near-duplicates differ at most."""
BANDS = NEAR + 1
"""Hashes that differ in so few bits agree in at least one of so many equal parts (the pigeonhole
principle; Manku et al., "Detecting near-duplicates for web crawling", WWW 2007)."""
BAND = 64 // BANDS


def group_texts(records: Iterable[Record]) -> list[str]:
    """For each record a text that is the same for all of its group: the smallest of its prompts.

    A sample without a prompt has its key instead. Perceptual hashes are compared where records
    have them (`Record.phash`).
    """
    numbers: dict[str, int] = {}
    of_record: list[int] = []
    hashes: list[int] = []
    hashed: list[int] = []
    for record in records:
        text = text_of(record)
        number = numbers.setdefault(text, len(numbers))
        of_record.append(number)
        if record.phash:
            hashes.append(int(record.phash, 16))
            hashed.append(number)
    forest = Forest(list(numbers))
    for a, b in near_pairs(np.array(hashes, np.uint64)):
        forest.join(hashed[a], hashed[b])
    return [forest.text(number) for number in of_record]


class Groups:
    """How large the same groups are, of records that come one by one: 24 bytes are held of each.

    Texts are compared by eight bytes of their digests.
    """

    def __init__(self) -> None:
        self._texts, self._looks, self._looked = array("Q"), array("Q"), array("Q")

    def add(self, record: Record) -> None:
        if record.phash:
            self._looks.append(int(record.phash, 16))
            self._looked.append(len(self._texts))
        self._texts.append(short_digest(text_of(record)))

    def sizes(self) -> Int[np.ndarray, " g"]:
        """Samples of each group."""
        texts, numbers = np.unique(np.array(self._texts, np.uint64), return_inverse=True)
        hashed, forest = numbers[np.array(self._looked, np.int64)], Forest(texts)
        for a, b in near_pairs(np.array(self._looks, np.uint64)):
            forest.join(int(hashed[a]), int(hashed[b]))
        roots = np.array([forest.root(i) for i in range(len(texts))], np.int64)
        return np.unique(roots[numbers], return_counts=True)[1]


def text_of(record: Record) -> str:
    """By what a record is known until its looks are compared."""
    return (record.prompt or record.key).strip().lower()


def short_digest(text: str) -> int:
    """Eight bytes: of a million texts two agree once in 40 million cases."""
    content = text.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


class Forest:
    """Disjoint sets of texts, or of what else has an order; each is known by its smallest."""

    def __init__(self, texts: Sequence[Any] | np.ndarray):
        self.texts, self.above = texts, list(range(len(texts)))

    def root(self, i: int) -> int:
        while self.above[i] != i:
            self.above[i] = self.above[self.above[i]]
            i = self.above[i]
        return i

    def join(self, i: int, j: int) -> None:
        first, second = sorted((self.root(i), self.root(j)), key=self.texts.__getitem__)
        self.above[second] = first

    def text(self, i: int) -> Any:
        return self.texts[self.root(i)]


def near_pairs(hashes: UInt64[np.ndarray, " n"]) -> Iterator[tuple[int, int]]:
    """Pairs of positions whose hashes differ in at most `NEAR` bits: enough to join all of them."""
    for band in range(BANDS):
        part = (hashes >> np.uint64(band * BAND)) & np.uint64(2**BAND - 1)
        order = np.lexsort((hashes, part))
        borders = np.flatnonzero(np.diff(part[order])) + 1
        for run in np.split(order, borders):
            yield from _pairs(hashes, run)


def _pairs(
    hashes: UInt64[np.ndarray, " n"], run: Int[np.ndarray, " m"]
) -> Iterator[tuple[int, int]]:
    """Of those that agree in one part; of equal hashes only neighbours, for they come in order."""
    equal = hashes[run[1:]] == hashes[run[:-1]]
    for i in np.flatnonzero(equal):
        yield int(run[i]), int(run[i + 1])
    single = run[np.append(True, ~equal)] if len(run) else run
    for i, one in enumerate(single[:-1]):
        distance = np.bitwise_count(hashes[single[i + 1 :]] ^ hashes[one])
        for j in np.flatnonzero(distance <= NEAR):
            yield int(one), int(single[i + 1 + j])
