"""A differentiable detector in; the same one looking at several perturbed copies, averaged, out.

What a detector's gradient asks of one image is partly noise that only this detector sees; blurred,
sharpened, brighter and noisier copies share what a person would see too. Averaging gradient over
perturbed inputs is SmoothGrad (arXiv 1706.03825). Always in float32, whatever the autocast.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from core.contracts import ArtifactMap, Detector, Images
from core.seeds import generator
from detector.augment import change_appearance
from detector.augmentation import Augmentation

STRENGTH = Augmentation(
    appearance=0.9,
    sharpness=(-0.5, 0.7),
    contrast=(0.8, 1.25),
    saturation=(0.6, 1.4),
    brightness=0.08,
    noise=0.1,
)
"""How far a view may be from its image: still the same picture to a person."""


@dataclass
class Views:
    """The mean map of `number` views of each image, which its own seed decides. 1: the image."""

    detector: Detector
    number: int
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        self.differentiable = self.detector.differentiable

    def __call__(self, images: Images) -> ArtifactMap:
        if self.number == 1:
            return self.detector(images)
        total = torch.zeros_like(images[:, :1], dtype=torch.float32)
        for view in range(self.number):
            with torch.autocast(images.device.type, enabled=False):
                seen = [
                    change_appearance(image[None].float(), STRENGTH, generator(seed, view))
                    for image, seed in zip(images, self.seeds, strict=True)
                ]
            total = total + self.detector(torch.cat(seen)).float()
        return total / self.number
