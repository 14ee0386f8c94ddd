"""Rated candidates and a budget in; which to take out: the hardest, evenly, and no two alike."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """An image that might be taken."""

    position: int
    hardness: float
    category: str
    group: str
    """Of its prompt and look: two of one group tell little more than one."""


def choose(candidates: Sequence[Candidate], n: int, labelled: Mapping[str, int]) -> list[int]:
    """At most n positions, hardest first; all where there are no more.

    Each category gets what brings its labels (with those it has) nearest to the others'; within
    it the hardest of each group come first, then the second of each group, and so on.
    """
    by_category: dict[str, list[Candidate]] = defaultdict(list)
    for one in candidates:
        by_category[one.category].append(one)
    there = {category: len(found) for category, found in by_category.items()}
    shares = fill(there, labelled, n)
    taken = [one for c, found in by_category.items() for one in spread_out(found)[: shares[c]]]
    return [one.position for one in sorted(taken, key=_hardest)]


def fill(there: Mapping[str, int], labelled: Mapping[str, int], n: int) -> dict[str, int]:
    """How many of each category: always one to that with the fewest labels, while it has any.

    Equal ones take turns by name.
    """
    shares = dict.fromkeys(sorted(there), 0)
    for _ in range(min(n, sum(there.values()))):
        left = [category for category in shares if shares[category] < there[category]]
        fewest = min(left, key=lambda category: labelled.get(category, 0) + shares[category])
        shares[fewest] += 1
    return shares


def spread_out(candidates: Sequence[Candidate]) -> list[Candidate]:
    """By turn within their group, then by hardness."""
    turns: Counter[str] = Counter()
    ordered = []
    for one in sorted(candidates, key=_hardest):
        ordered.append((turns[one.group], one))
        turns[one.group] += 1
    return [one for _, one in sorted(ordered, key=lambda pair: (pair[0], *_hardest(pair[1])))]


def _hardest(one: Candidate) -> tuple[float, int]:
    return -one.hardness, one.position
