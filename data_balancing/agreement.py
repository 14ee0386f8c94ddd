"""Masks of several annotators in; one soft label, and how far the annotators agree, out.

Intersection over union (IoU) of what reaches half is taken image by image and averaged; where both
find nothing, it is 1. Cohen's kappa is taken per pixel, pooled over the images of a pair
(Cohen 1960, "A coefficient of agreement for nominal scales"); where chance alone must agree (both
find nothing anywhere), it is 1. The overall kappa is the mean of the pairs' (Light 1971).

Legend: h w pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from jaxtyping import Int, UInt8
from pydantic import BaseModel

HALF = 128
"""From this level on a pixel counts as marked."""

Mask = UInt8[np.ndarray, "h w"]
Table = Int[np.ndarray, "2 2"]
"""Pixels by what the one (rows) and the other (columns) say: sound, marked."""


class Pair(BaseModel):
    """Two annotators and the images that both annotated."""

    annotators: tuple[str, str]
    images: int
    iou: float
    kappa: float


class Agreement(BaseModel):
    """Figures in 0..1 (kappa: -1..1); `iou` and `kappa` are None where no image has two masks."""

    images: int
    images_with_several: int
    iou: float | None
    """Mean over all pairs of masks of one image."""
    kappa: float | None
    pairs: list[Pair]


@dataclass
class _Tally:
    """What is known of a pair so far."""

    ious: list[float] = field(default_factory=list)
    table: Table = field(default_factory=lambda: np.zeros((2, 2), np.int64))


def soft_label(masks: Sequence[Mask]) -> Mask:
    """The mean of at least one mask, rounded to the nearest of 256 levels (half of one up)."""
    total = np.stack(masks).sum(axis=0, dtype=np.int64)
    return np.asarray((2 * total + len(masks)) // (2 * len(masks)), np.uint8)


def agreement(images: Iterable[Mapping[str, Mask]]) -> Agreement:
    """Figures of images, each with its masks by annotator; one image is held at a time."""
    tallies: dict[tuple[str, str], _Tally] = {}
    count = several = 0
    for masks in images:
        count, several = count + 1, several + (len(masks) > 1)
        for one, other in combinations(sorted(masks), 2):
            tally = tallies.setdefault((one, other), _Tally())
            table = cross_table(masks[one], masks[other])
            tally.ious.append(iou(table))
            tally.table += table
    pairs = [
        Pair(annotators=names, images=len(t.ious), iou=_mean(t.ious), kappa=kappa(t.table))
        for names, t in sorted(tallies.items())
    ]
    every = [value for tally in tallies.values() for value in tally.ious]
    return Agreement(
        images=count,
        images_with_several=several,
        iou=_mean(every) if every else None,
        kappa=_mean([pair.kappa for pair in pairs]) if pairs else None,
        pairs=pairs,
    )


def cross_table(one: Mask, other: Mask) -> Table:
    both = (one >= HALF) * np.uint8(2) + (other >= HALF)
    return np.bincount(both.ravel(), minlength=4).reshape(2, 2).astype(np.int64)


def iou(table: Table) -> float:
    union = int(table.sum() - table[0, 0])
    return int(table[1, 1]) / union if union else 1.0


def kappa(table: Table) -> float:
    """(observed - expected) / (1 - expected) agreement, from whole numbers until the division."""
    (none, second), (first, both) = table.tolist()
    n = none + second + first + both
    by_chance = (none + second) * (none + first) + (first + both) * (second + both)
    if by_chance == n * n:
        return 1.0
    return ((none + both) * n - by_chance) / (n * n - by_chance)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
