"""Broken images and the sound ones they were made from in; how far the gradient is from the mend.

A detector that finds artifacts well need not know how to mend them, and a treatment follows its
gradient, not its map. Where the sound image is known, the way to mend is known too: the cosine
between both is taught like the map itself. For classifiers: perceptually aligned gradients (Ganz,
Kawar and Elad 2023, arXiv 2207.11378). Legend: b batch, h w pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.contracts import ArtifactMap, Images

LABELLED = 0.1
"""Label from which the difference to the sound image counts as the mend."""
GRAIN = 2
"""Pixels over which both are averaged first: finer than that, the mend is anybody's guess. Tried at
64 pixels a side only."""
JITTER = 0.06
"""Largest deviation of the noise on the broken images: the gradient is to hold around them too."""


def misalignment(
    detector: nn.Module,
    broken: Images,
    sound: Images,
    target: ArtifactMap,
    threshold: float = 0.1,
) -> Float[Tensor, ""]:
    """Mean of 1 - cos(-gradient of the pixel loss, sound - broken within the label), both coarse.

    The pixel loss is the mean of the map above `threshold`, a treatment's with `--selection
    threshold`. In eval mode, in float32; carries gradient to the weights, for about four times the
    CPU time of the map's own loss. Images without label count nothing.
    """
    mend = (sound - broken) * (target > LABELLED)
    told = mend.flatten(1).abs().amax(dim=1) > 0
    if not told.any():
        return broken.new_zeros(())
    broken = broken[told].detach().requires_grad_(True)
    training = detector.training
    detector.eval()
    try:
        # The fused attention kernels have no second derivative.
        with torch.autocast(broken.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            c = detector(broken).flatten(1)
            above = (c > threshold).detach().to(c.dtype)
            score = (above * c).sum(1) / above.sum(1).clamp(min=1)
            (gradient,) = torch.autograd.grad(score.sum(), broken, create_graph=True)
    finally:
        detector.train(training)
    down, way = (F.avg_pool2d(x, GRAIN).flatten(1) for x in (-gradient, mend[told]))
    return 1 - torch.cosine_similarity(down, way).mean()
