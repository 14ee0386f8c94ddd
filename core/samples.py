"""One labelled image and where it comes from: what data sets and detectors pass to each other.

Legend: h w pixels.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from core.errors import UserError

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


class Record(BaseModel):
    """Where a sample comes from and what may be done with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    source: Literal["human", "hard", "pseudo", "real", "procedural"]
    category: str = ""
    prompt: str = ""
    generator: str = ""
    seed: int | None = None
    teacher: str = ""
    licence: str = ""
    caption: str | None = None
    referenced: bool = False
    """The sound image that this one was made from lies beside it."""
    pixels: str = ""
    """sha256 of the image's bytes once decoded, its sides before them; equal ones are one image."""
    phash: str = ""
    """64-bit perceptual hash, 16 hex digits; near-duplicates differ in few bits."""


@dataclass(frozen=True)
class Sample:
    """An image (h, w, 3) uint8, its mask (any h, w) uint8 0..255 or None, and its record.

    `reference`, where there is one: the sound image that this one was made from, of its size.
    """

    key: str
    image: np.ndarray
    mask: np.ndarray | None
    record: Record
    reference: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key) or self.record.key != self.key:
            raise UserError(
                f"sample key {self.key!r} must be 1 to 80 letters, digits, '-' or '_', the same "
                "in its record; make it with core.samples.safe_key."
            )
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(f"image must be uint8 (h, w, 3), not {self.image.dtype}")
        if self.mask is not None and (self.mask.dtype != np.uint8 or self.mask.ndim != 2):
            raise ValueError(f"mask must be uint8 (h, w), not {self.mask.dtype}")
        if self.record.referenced != (self.reference is not None):
            raise ValueError(f"the record of {self.key} is wrong about its reference")
        if self.reference is not None and (
            self.reference.dtype != np.uint8 or self.reference.ndim != 3
        ):
            raise ValueError(f"reference must be uint8 (h, w, 3), not {self.reference.dtype}")
        if self.reference is not None and self.reference.shape != self.image.shape:
            raise UserError(
                f"the reference of {self.key} is {self.reference.shape[1]}x"
                f"{self.reference.shape[0]} pixels, its image {self.image.shape[1]}x"
                f"{self.image.shape[0]}: bring both to one size."
            )


def safe_key(text: str) -> str:
    """`text` if it can be a key; else what can be kept of it and 16 hex digits of its hash."""
    if _KEY.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{re.sub('[^A-Za-z0-9_-]+', '-', text)[:63]}-{digest}"
