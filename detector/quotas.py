"""Records and shares in, the endless order in which samples teach out: so much of each source.

A pure function of (seed, position), as without quotas, so that any number of processes share it
out and a resume is one integer. Legend: n samples, g cells (a source, or a category of one).
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from core.errors import UserError
from core.order import epoch_order
from core.samples import Record
from core.seeds import mix

PERIOD = 1000
"""Slots after which the pattern of cells begins anew, with fewer than a tenth as many cells; shares
are rounded to one of them, but no cell of a positive share is left without."""
CELL = 109
"""What the draw is for: keeps the orders of the cells apart."""


class Quotas(NamedTuple):
    """Which samples belong to each cell, and the cell of each slot of a period."""

    cells: list[Int[np.ndarray, " n"]]
    pattern: Int[np.ndarray, " p"]
    before: Int[np.ndarray, "p g"]
    """Slots of each cell before a slot of the period."""

    def batch(self, size: int, seed: int, k: int) -> list[int]:
        """Positions of global batch k; each cell goes through epochs of its own."""
        return [self.at(place, seed) for place in range(k * size, (k + 1) * size)]

    def at(self, place: int, seed: int) -> int:
        turn, slot = divmod(place, len(self.pattern))
        g = int(self.pattern[slot])
        samples, per_turn = self.cells[g], int((self.pattern == g).sum())
        epoch, i = divmod(turn * per_turn + int(self.before[slot, g]), len(samples))
        return int(samples[epoch_order(len(samples), mix(seed, CELL, g), epoch)[i]])


def make_quotas(records: Iterable[Record], shares: Mapping[str, float], even: bool) -> Quotas:
    """Shares by source; those that are not named get nothing.

    Without `shares` every source has what its number gives it. `even`: the categories of a source
    share alike. Raises `UserError` for a source that the data do not hold.
    """
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, record in enumerate(records):
        found[record.source][record.category if even else ""].append(i)
    counts = {s: float(sum(map(len, one.values()))) for s, one in found.items()}
    shares = shares or counts
    check_shares(shares, found)
    whole = sum(shares.values())
    cells, weights = [], []
    for source in sorted(shares):
        for _, positions in sorted(found[source].items()):
            cells.append(np.array(positions))
            part = 1 / len(found[source]) if even else 1.0
            weights.append(shares[source] / whole * part)
    pattern = spread_evenly(slots(np.array(weights), max(PERIOD, 10 * len(cells))))
    before = np.cumsum(np.eye(len(cells), dtype=np.int64)[pattern], axis=0)
    return Quotas(cells, pattern, np.vstack([np.zeros_like(before[:1]), before[:-1]]))


def check_named(shares: Mapping[str, float], records: Iterable[Record]) -> None:
    """`check_shares` before anything is decoded; reads on until each named source was seen."""
    found: set[str] = set()
    for record in records if shares else ():
        found.add(record.source)
        if found.issuperset(shares):
            break
    if shares:
        check_shares(shares, found)


def check_shares(shares: Mapping[str, float], sources: Collection[str]) -> None:
    """Raise `UserError` for a source that is not there, or shares that are none."""
    absent = next((source for source in shares if source not in sources), None)
    if absent is not None:
        raise UserError(
            f"the quotas name {absent!r}, but the sources to learn from are "
            f"{', '.join(sorted(sources))}: name those alone, or add data of it."
        )
    whole = sum(shares.values())
    if not (math.isfinite(whole) and min(shares.values()) >= 0 and whole > 0):
        raise UserError("a share of a source is negative or no number, or all are 0: mend them.")


def slots(weights: np.ndarray, period: int) -> Int[np.ndarray, " g"]:
    """Whole numbers that add up to the period: one for each positive weight, the rest by the
    largest remainders."""
    positive = weights > 0
    exact = weights / weights.sum() * (period - positive.sum())
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: period - positive.sum() - whole.sum()]] += 1
    return whole + positive


def spread_evenly(counts: Int[np.ndarray, " g"]) -> Int[np.ndarray, " p"]:
    """Each cell's slots at equal distances, so that every batch has its part of each."""
    places = [((i + 0.5) / count, g) for g, count in enumerate(counts) for i in range(count)]
    return np.array([g for _, g in sorted(places)])
