"""What every reader of a data set gives: its images one by one, each decoded on demand.

Legend: h w pixels of an image, y x of its mask.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Labelled:
    """An image (h, w, 3) uint8, its mask (y, x) uint8 0..255, and what is known of it.

    `mask` is None where nobody has labelled the image, 255 is surely an artifact; `said` holds
    fields of `core.samples.Record`; `reference`, of the image's size, is the sound one that it was
    made from.
    """

    image: np.ndarray
    mask: np.ndarray | None
    said: dict[str, Any] = field(default_factory=dict)
    reference: np.ndarray | None = None


class Entry(NamedTuple):
    """One image of a data set."""

    name: str
    """By which a person finds it in the set; unique there, and the same in every run."""
    read: Callable[[], Labelled]
    """Raises `UserError` for what cannot be used: the reason for which it is set aside."""


Reader = Callable[[Path, Path | None], Iterator[Entry]]
"""(the set, the folder of images that come apart from it) to its entries, in a fixed order.

Raises `UserError` for what is no such set at all, before the first entry.
"""


RATIO = 1.02
"""Two shapes may be so far apart: sides are whole pixels."""
ROUNDED = 8
"""Pixels of a map by which a detector may have rounded a side: its input to 32, its map to 4."""


def same_shape(mask: Sequence[int], image: Sequence[int]) -> bool:
    """Whether (y, x) of a mask may belong to an image of (h, w): smaller, but as wide for high."""
    high, wide = mask[0] / image[0], mask[1] / image[1]
    apart = max(RATIO, 1 + ROUNDED / min(mask)) if max(high, wide) < 0.75 else RATIO
    return max(wide, high) <= apart * min(wide, high)
