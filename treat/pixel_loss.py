"""Artifact maps in, one number to lower out; and the lock that holds the rest of the image still.

Legend: b batch, h w pixels. Source: DiffDoctor (arXiv 2501.12382), section 3.3: M * C, M = C > 0.1.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from core.contracts import ArtifactMap, Images
from core.errors import UserError
from core.explain import unknown_name

EPS = 1e-5
"""Keeps the mean over no pixels at zero."""
SUREST = 1 - 2**-24
"""The float32 below 1. Above a logit of 17 a sigmoid gives 1 itself, and `log` pulls no further."""
PerImage = Float[Tensor, " b"]


def pixel_loss(
    maps: ArtifactMap, selection: str, threshold: float = 0.1, penalty: str = "probability"
) -> Float[Tensor, ""]:
    """Mean over the batch of one of `SELECTIONS`; the selection itself carries no gradient.

    `penalty` is what a pixel costs: its probability p, whose gradient fades in a detector's
    sigmoid where it is sure, or `log`, -log(1 - p), whose gradient does not (the non-saturating
    loss of Goodfellow et al., arXiv 1406.2661, section 3).
    """
    for what, known in ((selection, SELECTIONS), (penalty, PENALTIES)):
        if what not in known:
            raise UserError(unknown_name(what, known, "the pixel loss"))
    if penalty == "log":
        maps = -torch.log1p(-maps.clamp(max=SUREST))
        threshold = -math.log1p(-threshold)
    return SELECTIONS[selection](maps.flatten(1), threshold).mean()


def _threshold(c: Float[Tensor, "b hw"], threshold: float) -> PerImage:
    """The paper's: mean of C over the pixels above the threshold; blind to their number."""
    m = (c > threshold).detach().to(c.dtype)
    return (m * c).sum(1) / (m.sum(1) + EPS)


def _area(c: Float[Tensor, "b hw"], threshold: float) -> PerImage:
    """Sum of C over the pixels above the threshold, over all pixels: counts the area too."""
    m = (c > threshold).detach().to(c.dtype)
    return (m * c).sum(1) / c.shape[1]


def _root(c: Float[Tensor, "b hw"], threshold: float) -> PerImage:
    """Sum of C over the pixels above the threshold, over the root of their number and of all.

    Every image pulls about equally hard: the mean gives each pixel of a small artifact more of the
    gradient the smaller it is, the area gives most to the largest artifacts.
    """
    m = (c > threshold).detach().to(c.dtype)
    return (m * c).sum(1) / ((m.sum(1) + EPS) * c.shape[1]).sqrt()


def _all(c: Float[Tensor, "b hw"], _threshold: float) -> PerImage:
    return c.mean(1)


def _max(c: Float[Tensor, "b hw"], _threshold: float) -> PerImage:
    return c.amax(1)


SELECTIONS: dict[str, Callable[[Tensor, float], PerImage]] = {
    "threshold": _threshold,
    "root": _root,
    "area": _area,
    "all": _all,
    "max": _max,
}


PENALTIES = ("probability", "log")


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clamp(0, 1).masked_fill_(images.isinf(), torch.nan)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def straight_through_clamp(images: Images) -> Images:
    """Clamp to [0, 1]; gradient passes as if it did not, so that saturated pixels still learn.

    What is infinite becomes nan: a decoder that overflows has drawn no white pixel.
    """
    return _Clamp.apply(images)  # pyright: ignore[reportReturnType]


def dilated(maps: ArtifactMap, threshold: float, pixels: int) -> Bool[Tensor, "b 1 h w"]:
    """Pixels within `pixels` (square neighbourhood) of one above the threshold."""
    grown = F.max_pool2d(maps, 2 * pixels + 1, stride=1, padding=pixels) if pixels else maps
    return grown > threshold


def lock_loss(
    images: Images, base: Images, inside: Bool[Tensor, "b 1 h w"], share: float = 0.0
) -> Float[Tensor, ""]:
    """Squared change against the base's images; mean over all pixels.

    Within the mask it counts by `share`. Source: the region lock of Focus-N-Fix (arXiv 2501.06481),
    whose share is 0.
    """
    held = torch.where(inside, share, 1.0)
    return ((images - base).square() * held).mean()
