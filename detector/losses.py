"""Logits and soft labels in, one number out; every loss is a mean over the images of the batch.

Legend: b batch, h w pixels; p = sigmoid(logits), y the label in [0, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from core.contracts import ArtifactMap

CUT = 0.5
"""A label counts as artifact from here, where it is to be all or nothing."""
Loss = Callable[[Tensor, ArtifactMap], Tensor]
FOCUS = 2.0
"""Power of the distance that weighs a pixel; 2 in both papers."""
SMOOTH = 1.0
"""Pixels that both maps seem to share: without it an image without artifact has no gradient."""


def squared_error(logits: Tensor, target: ArtifactMap) -> Tensor:
    """MSE on the sigmoid map, as in DiffDoctor (arXiv 2501.12382)."""
    return (torch.sigmoid(logits) - target).square().mean()


def cross_entropy(logits: Tensor, target: ArtifactMap) -> Tensor:
    """Binary cross-entropy against the soft label."""
    return F.binary_cross_entropy_with_logits(logits, target)


def focal(logits: Tensor, target: ArtifactMap) -> Tensor:
    """|y - p|^2 times the cross-entropy: pixels that are nearly right count little.

    The quality focal loss (Li et al. 2020, arXiv 2006.04388, eq. 3), which is the focal loss (Lin
    et al. 2017, arXiv 1708.02002) for soft labels; without its alpha.
    """
    distance = (torch.sigmoid(logits) - target).abs() ** FOCUS
    return (distance * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).mean()


def dice(logits: Tensor, target: ArtifactMap) -> Tensor:
    """1 - 2 sum p y / (sum p^2 + sum y^2), image by image: a small artifact counts as a large one.

    V-Net's form (Milletari et al. 2016, arXiv 1606.04797), which is 0 at p = y for soft labels too.
    """
    p, y = torch.sigmoid(logits).flatten(1), target.flatten(1)
    shared, both = (p * y).sum(1), p.square().sum(1) + y.square().sum(1)
    return (1 - (2 * shared + SMOOTH) / (both + SMOOTH)).mean()


def binary(logits: Tensor, target: ArtifactMap) -> Tensor:
    """Cross-entropy against the label cut at .5: segmentation, as PAL4VST does (Zhang et al. 2023,
    arXiv 2310.05590). Half an artifact is one, and what is flagged is what reaches .5."""
    return cross_entropy(logits, (target >= CUT).float())


def binary_focal(logits: Tensor, target: ArtifactMap) -> Tensor:
    """The focal loss against the label cut at .5: Lin et al.'s own (eq. 4), without its alpha."""
    return focal(logits, (target >= CUT).float())


LOSSES: dict[str, Loss] = {
    "mse": squared_error,
    "bce": cross_entropy,
    "focal": focal,
    "dice": dice,
    "binary": binary,
    "binary_focal": binary_focal,
}
