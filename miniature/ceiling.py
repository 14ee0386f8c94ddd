"""The ceiling of all treatments: the oracle's own map as a reward, with its gradient.

For one row of analyses only. No treatment that is reported as one reads the oracle.
"""

from collections.abc import Sequence

from core.contracts import ArtifactMap, Images
from miniature.oracle import Oracle, outlier_posterior, variance


class Ceiling:
    """An ideal detector for images of known prompts (`reward_for` of `treat.train.main`)."""

    differentiable = True

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts, self.oracle = prompts, Oracle()

    def __call__(self, images: Images) -> ArtifactMap:
        """The outlier posterior, by way of the distance to the nearest valid image.

        That image is held fixed, so the gradient pulls every outlier towards it.
        """
        nearest = self.oracle.diagnose(images.detach(), self.prompts).nearest
        squared = (images - nearest).pow(2).sum(dim=1)
        return outlier_posterior(squared, variance(nearest))[:, None]
