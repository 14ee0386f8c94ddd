"""What every family does alike: sides checked before anything is drawn, noise from seeds."""

from collections.abc import Sequence

import torch

from core.contracts import Latents
from core.errors import UserError


def check_sides(height: int, width: int, grain: int) -> None:
    """Raise `UserError` unless both sides, in pixels, divide by `grain`."""
    if height % grain or width % grain or min(height, width) < grain:
        near = [max(grain, side // grain * grain) for side in (height, width)]  # within any limit
        raise UserError(
            f"{height}x{width} pixels do not divide by {grain}, as this base needs: "
            f"try {near[0]}x{near[1]}."
        )


def check_places(height: int, width: int, places: int | None, grain: int) -> None:
    """Raise `UserError` for sides of more tokens than a network has places for (None: any)."""
    if places is not None and max(height, width) > places * grain:
        raise UserError(
            f"This base knows places up to {places * grain} pixels: draw smaller images."
        )


def starting_noise(seeds: Sequence[int], c: int, y: int, x: int) -> Latents:
    """The noise that pipelines draw for `torch.Generator().manual_seed(seed)`, image by image.

    Drawn on the CPU, so that a seed names the same image on every device.
    """
    shape = (1, c, y, x)
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.cat(draws)
