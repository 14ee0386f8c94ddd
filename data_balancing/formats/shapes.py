"""Polygons, boxes and run lengths in, masks of an image's size out; 255 inside, 0 outside.

What marks no pixel of the image is a `UserError`: a fault that somebody saw must not become
"sound". Legend: h w pixels, `size` both, x y from the top left.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from core.errors import UserError

Mask = UInt8[np.ndarray, "h w"]


def polygons(shapes: Iterable[Sequence[Sequence[float]]], size: tuple[int, ...], name: str) -> Mask:
    """Filled; the pixels of the corners and edges belong to it."""
    h, w = size
    canvas, drawn = Image.new("L", (w, h)), False
    for points in shapes:
        _require_polygon(points, h, w, name)
        ImageDraw.Draw(canvas).polygon([(x, y) for x, y in points], fill=255)
        drawn = True
    if drawn and not canvas.getbbox():
        raise UserError(f"the polygons of {name} cover nothing of its {w}x{h} pixels; mend them.")
    return np.array(canvas)


def boxes(corners: Iterable[Sequence[float]], size: tuple[int, ...], name: str) -> Mask:
    """Filled [x1, y1, x2, y2], each side rounded outwards and cut at the image; swapped is fine."""
    h, w = size
    mask = np.zeros((h, w), np.uint8)
    for box in corners:
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise UserError(f"a box of {name} is not four numbers; mend it.")
        (left, right), (top, bottom) = sorted(box[0::2]), sorted(box[1::2])
        part = mask[
            _cut(top, h) : _cut(bottom, h, up=True), _cut(left, w) : _cut(right, w, up=True)
        ]
        if not part.size:
            raise UserError(f"a box of {name} covers nothing of its {w}x{h} pixels; mend it.")
        part[:] = 255
    return mask


def run_lengths(counts: str | Sequence[int], size: tuple[int, ...], name: str) -> Mask:
    """COCO's: runs of 0 and 1 in turn, down the columns; as numbers, or packed into a text.

    Unpacked here, not by pycocotools: its C code reads on past the end of a damaged text.
    """
    h, w = size
    runs = np.array(_unpacked(counts, name) if isinstance(counts, str) else counts, object)
    if not all(0 <= run <= h * w for run in runs) or sum(runs) != h * w:
        raise UserError(f"the run lengths of {name} are not of {w}x{h} pixels; mend them.")
    values = np.arange(len(runs)) % 2 * np.uint8(255)
    return np.repeat(values.astype(np.uint8), runs.astype(np.int64)).reshape(w, h).T.copy()


def _require_polygon(points: Sequence[Sequence[float]], h: int, w: int, name: str) -> None:
    if len(points) < 3:
        raise UserError(f"a polygon of {name} has {len(points)} points, not three; mend it.")
    if not all(len(point) == 2 and all(map(math.isfinite, point)) for point in points):
        raise UserError(f"a polygon of {name} has a point that is not two numbers; mend it.")
    if not all(-w <= x <= 2 * w and -h <= y <= 2 * h for x, y in points):
        raise UserError(f"a polygon of {name} lies far outside its {w}x{h} pixels; mend it.")
    xs, ys = zip(*points, strict=True)
    if max(xs) < 0 or max(ys) < 0 or min(xs) > w - 1 or min(ys) > h - 1:
        raise UserError(f"a polygon of {name} covers nothing of its {w}x{h} pixels; mend it.")


def _cut(value: float, side: int, up: bool = False) -> int:
    cut = min(max(value, 0), side)
    return math.ceil(cut) if up else math.floor(cut)


def _unpacked(text: str, name: str) -> list[int]:
    """5 bits a letter, the lowest first, the 6th says that more follow; differences from the run
    before the last one."""
    runs, value, shift = [], 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 35:
            raise UserError(f"the run lengths of {name} are no packed text; mend them.")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        value -= (code & 16 and 1) << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError(f"the run lengths of {name} end in the middle; mend them.")
    return runs
