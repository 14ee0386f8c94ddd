"""Several detectors in, one out: the mean of their maps. What deceives one is seen by another."""

from collections.abc import Sequence

import torch

from core.contracts import ArtifactMap, Detector, Images


class Together:
    """The mean map of `detectors`, differentiable if all of them are."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = detectors
        self.differentiable = all(detector.differentiable for detector in detectors)

    def __call__(self, images: Images) -> ArtifactMap:
        maps = [detector(images).float() for detector in self.detectors]
        return torch.stack(maps).mean(dim=0)


def together(detectors: Sequence[Detector]) -> Detector:
    """A single one as it is."""
    return detectors[0] if len(detectors) == 1 else Together(detectors)
