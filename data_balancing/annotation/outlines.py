"""Polygons and boxes in pixels in, masks out: pixel (0, 0) reaches from (0, 0) to (1, 1).

Drawn by pycocotools, so that the tools and we fill the same pixels.
"""

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from core.errors import UserError
from data_balancing.annotation.cases import Mask, Size

Point = tuple[float, float]
MAX_TURNS = 100
"""An outline is at most so many times as long as the image's sides: its memory grows with it."""


def polygon_mask(points: Sequence[Point], size: Size, where: str) -> Mask:
    """255 within the polygon; `UserError` for one that is none or lies far outside the image."""
    height, width = size
    flat = [value for point in points for value in point]
    reach = max(size)
    if len(points) < 3 or not all(math.isfinite(v) and -reach <= v <= 2 * reach for v in flat):
        raise UserError(f"{where}: a polygon has no three points near its image; draw it again.")
    length = sum(math.dist(one, other) for one, other in zip(points, points[1:], strict=False))
    if length > MAX_TURNS * (height + width):
        raise UserError(f"{where}: a polygon is longer than a person draws; draw it again.")
    library = coco_masks()
    return library.decode(library.frPyObjects([flat], height, width)).max(axis=2) * np.uint8(255)


def box_points(low: Point, high: Point, degrees: float = 0) -> list[Point]:
    """The corners of a box, turned clockwise about its centre."""
    middle = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
    away = [(x - middle[0], y - middle[1]) for x, y in corners]
    return [(middle[0] + x * cos - y * sin, middle[1] + x * sin + y * cos) for x, y in away]


def coco_masks() -> ModuleType:
    """`pycocotools.mask`; `UserError` where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "COCO files and polygons need pycocotools: pip install pycocotools."
        ) from error
    return mask
