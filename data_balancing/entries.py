"""What every reader of a data set gives: its images one by one, each decoded on demand.

Legend: h w pixels of an image, y x of its mask.
"""

from collections.abc import Callable, Iterator
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
