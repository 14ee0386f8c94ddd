"""The terms of the loss as the step meets them: at the image, and on real images.

Legend: b batch, h w pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from base_models.sample import Precision, around
from core.contracts import Detector, DiffusionModel, Images, Latents
from treat.lora import adapter_off
from treat.pixel_loss import dilated, lock_loss, pixel_loss, straight_through_clamp
from treat.step import Chain, draw
from treat.watch import split_rows


@dataclass(frozen=True)
class Lock:
    """The base's images at the same seeds, and where they may change more freely."""

    weight: float
    base: Images
    inside: Bool[Tensor, "b 1 h w"]
    share: float
    """Of the weight, within."""


@dataclass(frozen=True)
class Score:
    """An image-level reward, which is raised."""

    weight: float
    of: Callable[[Images], Float[Tensor, " b"]]


@dataclass
class RewardTerm:
    """Images -> what is to be lowered; leaves its parts in `figures`.

    The artifact loss, the lock beside it, and an image-level score with its sign turned.
    """

    weight: float
    selection: str
    threshold: float
    detector: Detector | None = None
    lock: Lock | None = None
    score: Score | None = None
    penalty: str = "probability"
    figures: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, images: Images) -> Float[Tensor, ""]:
        images = straight_through_clamp(images)
        total = images.new_zeros(())
        if self.detector is not None:
            maps = self.detector(images).float()
            pixel = pixel_loss(maps, self.selection, self.threshold, self.penalty)
            total = self._add(total, "pixel", self.weight, pixel)
        if self.lock is not None:
            lock = lock_loss(images, self.lock.base, self.lock.inside, self.lock.share)
            total = self._add(total, "lock", self.lock.weight, lock)
        if self.score is not None:
            score = -self.score.of(images).float().mean()
            total = self._add(total, "image", self.score.weight, score)
        return total

    def _add(self, total: Tensor, name: str, weight: float, value: Tensor) -> Tensor:
        self.figures[name] = value.detach()
        return total + weight * value


@torch.no_grad()
def lock_to_base(
    chain: Chain,
    noise: Latents,
    detector: Detector,
    *,
    weight: float,
    share: float,
    threshold: float,
    dilation: int,
) -> Lock:
    """Draw the base at the same noise; what the detector marks there, grown, may change."""
    with adapter_off(chain.model.network):
        latents, _ = draw(chain, noise, ())
    base = straight_through_clamp(chain.decode(latents))
    with chain.precision():
        maps = detector(base).float()
    return Lock(weight, base, dilated(maps, threshold, dilation), share)


def offline_term(
    model: DiffusionModel,
    rows: Mapping[str, Tensor],
    seeds: Sequence[int],
    precision: Precision,
    target: Literal["images", "base"] = "images",
) -> Float[Tensor, ""]:
    """The model's own loss on cached real images; or the mean square of what its network predicts
    at these noised images less what the base predicts there (one more pass, without gradient)."""
    clean, text = split_rows(rows)
    with around(model.network, precision):
        if target == "images":
            return model.offline_loss(clean, text, seeds)
        with torch.no_grad(), adapter_off(model.network), predictions(model.network) as base:
            model.offline_loss(clean, text, seeds)
        with predictions(model.network) as ours:
            model.offline_loss(clean, text, seeds)
    (treated,), (untreated,) = ours, base  # one call each, or it would be part of a prediction
    return (treated.float() - untreated.float()).square().mean()


@contextmanager
def predictions(network: nn.Module) -> Iterator[list[Tensor]]:
    """What the network gives at each call within."""
    found: list[Tensor] = []
    handle = network.register_forward_hook(lambda _module, _given, out: found.append(out[0]))
    try:
        yield found
    finally:
        handle.remove()
