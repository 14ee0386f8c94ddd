"""BayesDiff: where the network is unsure of its own noise, the image is drawn anew.

Kou et al. 2024, arXiv 2310.11142, with its skip: only every few steps ask for the uncertainty. The
variance of x is carried through x' = a x + b eps: a^2 Var(x) + 2 a b Cov(x, eps) + b^2 Var(eps),
covariance and variance from samples of x and of the last layer's weights. As a baseline of ASCED's
table its map at T_c is corrected by equation 6; the paper itself only measures.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from base_models.trajectory import Level, noise_in
from core.contracts import Latents
from core.seeds import generator
from detector.score_dynamics import MAD_TO_DEVIATION, T_C, Window, check_window, median
from treat.correctors.asced import Asced
from treat.correctors.last_layer import Laplace
from treat.correctors.moment import Correction, Mask, Moment

SAMPLE = 100
"""Numbers of the draws of one moment, from here on."""
WEIGHTS = 72
"""What a draw is for; see `core.seeds`."""


@final
@dataclass(frozen=True)
class Bayes:
    """`samples` further passes through the network every `every` steps, up to T_c."""

    laplace: Laplace
    t_c: float = T_C
    gamma: float = 1.0
    samples: int = 10
    every: int = 5
    deviations: float = 3.0
    """Unsure: the variance is so many deviations (1.4826 MAD) over the image's median."""

    def __call__(self, moment: Moment) -> Correction:
        window = Window(self.t_c)
        check_window(window, moment.steps)
        at = window.correction(moment.steps)
        if moment.i >= at:
            return moment.unchanged()
        if moment.level.signal:  # a flow's first step knows nothing of x0 yet
            moment.notes["variance"] = self._carried(moment)
        if moment.i + 1 < at:
            return moment.unchanged()
        variance = moment.notes["variance"]
        return Asced(lambda *_: self._unsure(variance), t_c=self.t_c, gamma=self.gamma)(moment)

    def _carried(self, moment: Moment) -> Latents:
        """Var of what leaves the step."""
        a, b = coefficients(moment.level, moment.following)
        variance = moment.notes.get("variance")
        if variance is not None and moment.i % self.every:
            return a * a * variance
        variance = torch.zeros_like(moment.leaving) if variance is None else variance
        together, own = self._sampled(moment, variance)
        return (a * a * variance + 2 * a * b * together + b * b * own).clamp(min=0)

    def _sampled(self, moment: Moment, variance: Latents) -> tuple[Latents, Latents]:
        """Cov(x, eps) and Var(eps)."""
        chain, i = moment.chain, moment.i
        entering, xs, noises = moment.trajectory.entering[-1], [], []
        for s in range(self.samples):
            x = entering + variance.sqrt() * moment.noise(SAMPLE + s)
            with self.laplace.sampled(generator(WEIGHTS, i, s)), chain.precision():
                _, clean = chain.model.move(x, i, chain.schedule, chain.conditioning)
            xs.append(x)
            noises.append(noise_in(x, clean, moment.level))
        # From the first sample: equal samples then have no variance at all, not that of rounding.
        x, eps = torch.stack(xs) - xs[0], torch.stack(noises) - noises[0]
        together = ((x - x.mean(dim=0)) * (eps - eps.mean(dim=0))).mean(dim=0)
        return together, eps.var(dim=0, unbiased=True)

    def _unsure(self, variance: Latents) -> Mask:
        """The channels' mean variance, against the image's own spread of it."""
        seen = variance.mean(dim=1, keepdim=True)
        flat = seen.flatten(1)[None]
        middle = median(flat)
        spread = MAD_TO_DEVIATION * median((flat - middle).abs())
        limit: Tensor = (middle + self.deviations * spread).view(-1, 1, 1, 1)
        return (seen > limit).float()


def coefficients(level: Level, following: Level) -> tuple[float, float]:
    """a and b of x' = a x + b eps, x0-hat = (x - noise eps) / signal put in."""
    a = following.signal / level.signal
    return a, following.noise - level.noise * a
