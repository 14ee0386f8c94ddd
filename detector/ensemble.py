"""Several detectors in, one out: the mean of their maps, or pixel by pixel the largest."""

from collections.abc import Sequence
from typing import Literal, final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from core.contracts import ArtifactMap, Detector, Images
from detector.flaw_map import HighlighterConfig
from detector.segformer import SegformerConfig

Combination = Literal["mean", "max"]


class EnsembleConfig(BaseModel):
    """What is needed to build the networks again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    combine: Combination = "mean"
    members: tuple[SegformerConfig | HighlighterConfig, ...] = Field(min_length=2)


@final
class Ensemble(nn.Module):
    """The mean (or the largest) map of `detectors`, differentiable if all of them are."""

    def __init__(self, detectors: Sequence[Detector], combine: Combination = "mean") -> None:
        super().__init__()
        self.detectors, self.combine = tuple(detectors), combine
        self.differentiable = all(detector.differentiable for detector in detectors)
        for i, detector in enumerate(detectors):
            if isinstance(detector, nn.Module):  # else it has no weights to move
                self.add_module(str(i), detector)

    def forward(self, images: Images) -> ArtifactMap:
        maps = torch.stack([detector(images).float() for detector in self.detectors])
        return maps.mean(dim=0) if self.combine == "mean" else maps.amax(dim=0)


def ensemble(detectors: Sequence[Detector], combine: Combination = "mean") -> Detector:
    """A single one as it is."""
    return detectors[0] if len(detectors) == 1 else Ensemble(detectors, combine)
