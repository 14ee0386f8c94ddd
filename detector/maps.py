"""Logits at a network's stride in, maps on the image's grid out; what detectors ask of images.

Legend: b batch, h w pixels, y x cells of the network.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from core.contracts import ArtifactMap
from core.errors import UserError

HALF_A_LEVEL = 0.5 / 255
"""What a map of 8 bits leaves open."""


def upsample(logits: Tensor, size: Sequence[Any]) -> Float[Tensor, "b 1 h w"]:
    """The one way from logits to the image's grid (its sides are symbols under torch.export)."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def enlarged_by_logits(levels: Float[Tensor, "b 1 y x"], size: Sequence[int]) -> ArtifactMap:
    """A detector's map, kept at its stride in 8 bits, as the detector itself shows it at `size`.

    Enlarged by its levels, a pixel halfway from .9 to .002 would have .45 where the detector says
    .12: all that is marked would grow, and who learns from it would mark more. Among levels of 0
    the map is 0; the highest level, 255, reads as .998.
    """
    near = F.interpolate(levels, size=tuple(size), mode="bilinear") > 0
    return torch.sigmoid(upsample(torch.logit(levels, eps=HALF_A_LEVEL), size)) * near


def check_images(images: Tensor) -> None:
    """Raise `UserError` for what has another shape or kind than images."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise UserError(
            "a detector takes float images in [0, 1] of shape (b, 3, h, w), not "
            f"{images.dtype} of {tuple(images.shape)}: stack what read_image gives."
        )
