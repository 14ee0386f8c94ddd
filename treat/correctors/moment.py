"""What a corrector sees after every sampling step, and what it may give back.

One signature for all: a `Moment` in, a `Correction` out. A corrector draws nothing at random but
from the images' own seeds, so that a corrected image is a function of its seed, whatever the batch.

Legend: b batch, c y x latent channels and cells, h w pixels, T sampling steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from base_models.sample import around
from base_models.trajectory import Level, Trajectory, joined, noise_in
from core.contracts import Images, Latents
from core.seeds import mix
from detector.bayes import Again
from treat.step import Chain

CORRECTION = 71
"""What a draw is for; see `core.seeds`."""
Mask = Float[Tensor, "b 1 h w"]
"""1 where an artifact was found, else 0; of pixels, or of latent cells."""


class Correction(NamedTuple):
    """What enters the next step, and where it was changed (None: this was no time to look)."""

    latents: Latents
    mask: Mask | None = None


@dataclass(frozen=True)
class Moment:
    """Step i of T was just taken."""

    chain: Chain
    trajectory: Trajectory
    """Steps 0 to i, as they were walked."""
    leaving: Latents
    """What would enter step i + 1."""
    seeds: Sequence[int]
    notes: dict[str, Tensor]
    """What the corrector wrote down of this batch at earlier steps; empty at first."""

    @property
    def i(self) -> int:
        return len(self.trajectory.clean) - 1

    @property
    def steps(self) -> int:
        """T."""
        return self.trajectory.steps

    @property
    def clean(self) -> Latents:
        """x0-hat of step i."""
        return self.trajectory.clean[-1]

    @property
    def eps(self) -> Latents:
        """The noise that step i saw beside its x0-hat."""
        return noise_in(self.trajectory.entering[-1], self.clean, self.level)

    @property
    def level(self) -> Level:
        return self.trajectory.levels[self.i]

    @property
    def following(self) -> Level:
        """Of what leaves step i."""
        return self.trajectory.levels[self.i + 1]

    def unchanged(self) -> Correction:
        return Correction(self.leaving)

    def going_to(self, clean: Latents, eps: Latents | None = None) -> Latents:
        """What leaves step i where this is x0-hat, with the noise that it saw or another."""
        return joined(clean, self.eps if eps is None else eps, self.following)

    def noise(self, number: int) -> Latents:
        """Unit noise of each image's seed, of this step; one for each `number`."""
        return noise_of(self.chain, self.seeds, self.i, number)

    def pictures(self) -> Images:
        """x0-hat as an image in [0, 1]."""
        return self.chain.decode(self.clean).clamp(0, 1)

    def cells(self, mask: Mask) -> Bool[Tensor, "b 1 y x"]:
        """A mask of any size over the latents: a cell counts where any of its pixels does."""
        return F.adaptive_max_pool2d(mask.float(), self.leaving.shape[-2:]).to(self.leaving) > 0.5


@runtime_checkable
class Corrector(Protocol):
    """One of `treat.correctors.CORRECTORS`; its numbers are its own fields."""

    def __call__(self, moment: Moment) -> Correction: ...


def inside(mask: Bool[Tensor, "b 1 #y #x"], new: Latents, old: Latents) -> Latents:
    """The new latents within the mask; what lies outside stays to the bit."""
    return torch.where(mask, new, old)


def noise_of(chain: Chain, seeds: Sequence[int], i: int, number: int) -> Latents:
    """Unit noise of each image's seed, of step i; one for each `number`."""
    drawn = [mix(seed, CORRECTION, i, number) % 2**32 for seed in seeds]
    return chain.model.noise(drawn, chain.schedule.height, chain.schedule.width)


def asked_again(chain: Chain, seeds: Sequence[int]) -> Again:
    """The chain's network, for whoever measures its uncertainty."""

    def clean(latents: Latents, i: int) -> Latents:
        with around(chain.model.network, chain.precision):
            return chain.model.move(latents, i, chain.schedule, chain.conditioning)[1]

    return Again(clean, lambda i, number: noise_of(chain, seeds, i, number), chain.decode)
