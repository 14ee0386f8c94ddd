"""The ceiling of all treatments: the oracle's own map as a reward, with its gradient.

For one row of analyses only. No treatment that is reported as one reads the oracle.
"""

from collections.abc import Sequence

import torch

from core.contracts import ArtifactMap, Images
from miniature.oracle import Oracle


class Ceiling:
    """An ideal detector for images of known prompts (`reward_for` of `treat.train.main`)."""

    differentiable = True

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts, self.oracle = prompts, Oracle()

    def __call__(self, images: Images) -> ArtifactMap:
        """How far each pixel of an artifact is from the nearest valid image, in RGB.

        That image is held fixed, so the gradient pulls every such pixel straight towards it. The
        oracle's own posterior is no use here: it is flat where a pixel is surely wrong.
        """
        with torch.autocast(images.device.type, enabled=False):
            found = self.oracle.diagnose(images.detach(), self.prompts)
        squared = (images - found.nearest).pow(2).sum(dim=1, keepdim=True)
        wrong = (found.map > 0.1).float()
        return ((squared + 1e-6).sqrt() * wrong).clamp(max=1)
