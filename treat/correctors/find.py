"""Where the artifacts of a half-drawn image are: a moment of a sampling in, a mask out.

By the sampling's own score dynamics (ASCED) or uncertainty (BayesDiff), or by any detector that
looks at x0-hat decoded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from core.contracts import Detector
from detector.bayes import DEVIATIONS, EVERY, SAMPLES, Uncertainty
from detector.last_layer import Laplace
from detector.score_dynamics import ScoreDynamics, Variant, Window, grown
from treat.correctors.moment import Mask, Moment, asked_again

Find = Callable[[Moment, Window], Mask]
"""A mask for every image of the moment; of pixels, or of latent cells."""


@final
@dataclass(frozen=True)
class ByDynamics:
    """Omega of the steps within the window; `code` widens it as its release does."""

    variant: Variant = "paper"
    bank: Sequence[float] | None = None
    factor: float = 1.0

    def __call__(self, moment: Moment, window: Window) -> Mask:
        found = ScoreDynamics(
            moment.trajectory, moment.chain.decode, self.variant, window, self.bank, self.factor
        ).maps()
        return grown(found) if self.variant == "code" else (found > 0.5).float()


@final
@dataclass(frozen=True)
class ByUncertainty:
    """Where the network is unsure of its noise; asks it again for the steps up to now."""

    laplace: Laplace
    samples: int = SAMPLES
    every: int = EVERY
    deviations: float = DEVIATIONS

    def __call__(self, moment: Moment, window: Window) -> Mask:
        again = asked_again(moment.chain, moment.seeds)
        numbers = self.samples, self.every, self.deviations
        return (Uncertainty(moment.trajectory, again, self.laplace, *numbers).maps() > 0.5).float()


@final
@dataclass(frozen=True)
class ByDetector:
    """Where a detector sees artifacts in x0-hat, from a probability of `threshold` on."""

    detector: Detector
    threshold: float = 0.5

    def __call__(self, moment: Moment, window: Window) -> Mask:
        with torch.no_grad():
            return (self.detector(moment.pictures()) >= self.threshold).float()
