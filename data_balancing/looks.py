"""An image in, the two hashes by which copies of it are known out.

Legend: h w pixels.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from core.errors import UserError
from core.samples import Record

Pixels = UInt8[np.ndarray, "h w 3"]


def pixels(image: Pixels) -> str:
    """sha256 over the sides and the levels: equal for files that decode to the same image."""
    sides = np.array(image.shape[:2], "<u4").tobytes()
    return hashlib.sha256(sides + np.ascontiguousarray(image).tobytes()).hexdigest()


def phash(image: Pixels) -> str:
    """64-bit perceptual hash of ImageHash: signs of the low frequencies about their median."""
    try:
        import imagehash
    except ImportError as error:
        raise UserError(
            "Perceptual hashes need ImageHash: install it (pip install ImageHash)."
        ) from error
    return str(imagehash.phash(Image.fromarray(image)))


class Seen:
    """Which images are there already, by eight bytes of each digest."""

    def __init__(self, records: Iterable[Record] = ()):
        self._keys: dict[bytes, str] = {}
        for record in records:
            if record.pixels:
                self.add(record.pixels, record.key)

    def add(self, digest: str, key: str) -> None:
        self._keys[bytes.fromhex(digest)[:8]] = key

    def key_of(self, digest: str) -> str | None:
        """The key of the sample with these pixels."""
        return self._keys.get(bytes.fromhex(digest)[:8])
