"""Several detectors in, one out: the mean of their maps."""

from collections.abc import Sequence
from typing import final

import torch

from core.contracts import ArtifactMap, Detector, Images


@final
class Ensemble:
    """The mean map of `detectors`, differentiable if all of them are."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = detectors
        self.differentiable = all(detector.differentiable for detector in detectors)

    def __call__(self, images: Images) -> ArtifactMap:
        maps = [detector(images).float() for detector in self.detectors]
        return torch.stack(maps).mean(dim=0)


def ensemble(detectors: Sequence[Detector]) -> Detector:
    """A single one as it is."""
    return detectors[0] if len(detectors) == 1 else Ensemble(detectors)
