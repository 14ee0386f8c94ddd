"""Image files in, decoded pictures out, and back; nothing unsafe or surprising is decoded.

Apart from `core.images`, whose tensors need torch: to bring data in takes a tenth of its memory.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from core.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 25_000_000
"""A 24-megapixel camera passes; as float32 RGB this is 300 MB."""
MAX_BYTES = 64 * 1024 * 1024
COLOURLESS = 16
"""Of 255, by which the channels of a gray picture may differ, as JPEG leaves them."""


def list_images(path: Path, deep: bool = False) -> list[Path]:
    """The image file `path`, or the image files in the folder `path`, sorted; `deep`: and below it.

    Raises `UserError` when there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist; name an image file or a folder of images.")
    found = sorted(
        entry
        for entry in (path.rglob("*") if deep else path.iterdir())
        if entry.suffix.lower() in SUFFIXES and entry.is_file()
        if not any(part.startswith(".") for part in entry.relative_to(path).parts)
    )
    if not found:
        below = not deep and any(one.suffix.lower() in SUFFIXES for one in path.rglob("*"))
        cure = (
            "name one of its folders, or make a store of all: `diffdoctor data import photographs`"
        )
        cure = cure if below else f"put files ending in {', '.join(SUFFIXES)} there"
        raise UserError(f"no image in {path}; {cure}.")
    return found


def check_png(path: Path) -> None:
    """Raise `UserError` for a name that promises another format than PNG."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{path} would be a PNG: give it a name that ends in .png.")


def encode_png(array: np.ndarray) -> bytes:
    """PNG bytes of a uint8 array, (h, w, 3) or (h, w)."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def open_image(path: Path, formats: Sequence[str] = FORMATS) -> Image.Image:
    """A decoded picture of a file, oriented, in the file's own mode.

    Raises `UserError` naming the file: not PNG, JPEG or WebP by content, animated, larger than
    `MAX_BYTES` or `MAX_PIXELS` by its header, damaged, or missing.
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path.") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES} bytes; shrink it.")
    return decode_image(content, str(path), formats)


def decode_image(content: bytes, name: str, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Decode bytes after checking their header; `name` is what errors call them."""
    try:
        picture = Image.open(io.BytesIO(content), formats=list(formats))
        _check_header(picture, name)
        picture.load()
        return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        kinds = ", ".join(formats)
        raise UserError(f"{name} is none of {kinds} by its content; convert it.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} has more than {MAX_PIXELS} pixels; shrink it.") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise UserError(f"{name} is damaged ({error}); replace it.") from error


def gray(picture: Image.Image) -> np.ndarray:
    """Levels (h, w) of a mask picture; colours count by brightness, 16 bits lose the low byte."""
    if picture.mode.startswith("I"):
        return (np.asarray(picture) >> 8).astype(np.uint8)
    return np.array(picture.convert("L"))


def mask_levels(path: Path) -> np.ndarray:
    """Levels (h, w) of a mask's file, as `mask_of`."""
    return mask_of(open_image(path), str(path))


def mask_of(picture: Image.Image, name: str) -> np.ndarray:
    """Levels (h, w) of a mask; raises `UserError` where colours or holes would be lost."""
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        raise UserError(f"{name} is transparent in places, and so no mask: save it as 8-bit gray.")
    if picture.mode != "L" and not picture.mode.startswith("I"):
        levels = np.asarray(picture.convert("RGB")).astype(np.int16)
        if np.ptp(levels, axis=2).max() > COLOURLESS:
            raise UserError(
                f"{name} is a picture in colours, and so no mask: save it as 8-bit gray, 255 where "
                "something is marked."
            )
    return gray(picture)


def _check_header(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{name} has {width}x{height} pixels, more than {MAX_PIXELS}; shrink it.")
    # MPO is a JPEG with more views behind it, as phones write: the first one is the photograph
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        raise UserError(f"{name} is animated; save one frame of it as PNG.")


def flatten(picture: Image.Image) -> np.ndarray:
    """RGB levels (h, w, 3); transparency is laid on white, 16-bit gray loses its low byte."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
