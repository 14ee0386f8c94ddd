"""The two terms of the loss as the step meets them: at the image, and on real images.

Legend: b batch, h w pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.contracts import Detector, DiffusionModel, Images, Latents
from treat.lora import adapter_off
from treat.pixel_loss import dilated, lock_loss, pixel_loss, straight_through_clamp
from treat.step import Chain, Precision, draw
from treat.watch import split_rows


@dataclass(frozen=True)
class Lock:
    """The base's images at the same seeds, and where they may change."""

    weight: float
    base: Images
    inside: Bool[Tensor, "b 1 h w"]


@dataclass
class PixelTerm:
    """Images -> weighted artifact loss, with the lock; leaves its parts in `figures`."""

    detector: Detector
    weight: float
    selection: str
    threshold: float
    lock: Lock | None = None
    figures: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, images: Images) -> Float[Tensor, ""]:
        images = straight_through_clamp(images)
        pixel = pixel_loss(self.detector(images).float(), self.selection, self.threshold)
        self.figures["pixel"] = pixel.detach()
        if self.lock is None:
            return self.weight * pixel
        lock = lock_loss(images, self.lock.base, self.lock.inside)
        self.figures["lock"] = lock.detach()
        return self.weight * pixel + self.lock.weight * lock


@torch.no_grad()
def lock_to_base(
    chain: Chain, noise: Latents, detector: Detector, weight: float, threshold: float, dilation: int
) -> Lock:
    """Draw the base at the same noise; what the detector marks there, grown, may change."""
    with adapter_off(chain.model.network):
        latents, _ = draw(chain, noise, ())
    base = chain.decode(latents).clamp(0, 1)
    with chain.precision():
        maps = detector(base).float()
    return Lock(weight, base, dilated(maps, threshold, dilation))


def offline_term(
    model: DiffusionModel, rows: Mapping[str, Tensor], seeds: Sequence[int], precision: Precision
) -> Float[Tensor, ""]:
    """The model's own loss on cached real images."""
    clean, text = split_rows(rows)
    with precision():
        return model.offline_loss(clean, text, seeds)
