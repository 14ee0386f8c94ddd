"""Image files in, float tensors in [0, 1] out, and back.

Legend: b batch, h w pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from core.contracts import Images
from core.errors import UserError
from core.image_files import check_png, encode_png, flatten, open_image
from core.storage import write_atomic

Picture = Float[Tensor, "3 h w"]
AnyPicture = Float[Tensor, "3 _ _"]
"""Where pictures of several sizes meet."""
Levels = UInt8[np.ndarray, "b h w 3"]


def read_image(path: Path | str) -> Picture:
    """One RGB picture in [0, 1], EXIF orientation applied, alpha laid on white.

    Raises `UserError` naming the file, as `core.image_files.open_image` does.
    """
    return from_uint8(flatten(open_image(Path(path)))[None])[0]


def read_images(paths: Sequence[Path]) -> Images:
    """Pictures of equal size as one batch; `UserError` naming the first that differs."""
    if not paths:
        raise UserError("no image was given; name at least one file.")
    pictures = [read_image(path) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            sizes = [f"{p.shape[2]}x{p.shape[1]}" for p in (picture, pictures[0])]
            raise UserError(
                f"{path} is {sizes[0]} but {paths[0]} is {sizes[1]}; make all images one size."
            )
    return torch.stack(pictures)


def write_image(path: Path | str, image: Picture) -> None:
    """Write an 8-bit PNG (values clamped to [0, 1], rounded); whole or not at all.

    Raises `UserError` for a name that promises another format.
    """
    check_png(Path(path))
    write_atomic(Path(path), encode_png(to_uint8(image[None])[0]))


def to_uint8(images: Images) -> Levels:
    """Clamp to [0, 1], round to the nearest of 256 levels, channels last."""
    return _levels(images).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def from_uint8(array: Levels) -> Images:
    """The exact inverse of `to_uint8`."""
    planes = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    return planes.float().div_(255)


def round_to_8bit(images: Images) -> Images:
    """What is left of images after a PNG: 256 levels, still float in [0, 1]; no gradient."""
    return _levels(images) / 255


def contact_sheet(
    rows: Sequence[Sequence[AnyPicture]],
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
    gap: int = 4,
) -> AnyPicture:
    """Pictures in a table on white, `gap` pixels apart.

    `labels` stand above each row at the left, `columns` above the first row's pictures. Every
    cell is as large as the largest picture; smaller ones stand at its top left.
    """
    if not any(rows):
        raise UserError("a contact sheet needs at least one picture.")
    cell_h = max(picture.shape[1] for row in rows for picture in row)
    cell_w = max(picture.shape[2] for row in rows for picture in row)
    text_h = 14  # pixels of one line of the built-in font
    head = text_h if columns else 0
    step_h = cell_h + gap + (text_h if labels else 0)
    width = gap + max(map(len, rows)) * (cell_w + gap)
    sheet = np.full((head + gap + len(rows) * step_h, width, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        top = head + gap + r * step_h + (text_h if labels else 0)
        for c, picture in enumerate(row):
            left = gap + c * (cell_w + gap)
            array = to_uint8(picture.detach()[None])[0]
            sheet[top : top + array.shape[0], left : left + array.shape[1]] = array
    places = [(gap + c * (cell_w + gap), 1, text) for c, text in enumerate(columns)]
    places += [(gap, head + gap + r * step_h, text) for r, text in enumerate(labels)]
    return from_uint8(_written(sheet, places)[None])[0]


def _levels(images: Tensor) -> Tensor:
    return images.detach().float().clamp(0, 1).mul(255).round()


def _written(sheet: np.ndarray, places: Sequence[tuple[int, int, str]]) -> np.ndarray:
    """Black text at (left, top) pixel positions."""
    picture = Image.fromarray(sheet)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    for left, top, text in places:
        draw.text((left, top), text, fill="black", font=font)
    return np.asarray(picture)
