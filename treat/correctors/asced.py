"""ASCED's correction, and State Replacement: at T_c, what was found is drawn anew on the way.

Cao et al., CVPR 2025, arXiv 2503.16218, equation 6, and what the paper's release does instead.
"""

from dataclasses import dataclass
from typing import final

from base_models import trajectory
from base_models.trajectory import joined
from core.contracts import Latents
from detector.score_dynamics import T_C, Variant, Window, check_window
from treat.correctors.find import Find
from treat.correctors.moment import Correction, Moment, inside

IMAGE, FACTOR, FRESH, STEP = range(4)
"""Numbers of the draws of one moment."""


@final
@dataclass(frozen=True)
class Asced:
    """Where an artifact is found at T_c, x0-hat is noised again and shaken.

    `paper`, `x0`: x = (sqrt(abar) x0-hat + sqrt(1 - abar) eps) * gamma * xi, with eps and xi ~
    N(0, I).
    `code`: an x0-hat of `back` steps ago plus `shake` of noise, noised again and pasted; the step
    that follows is DDIM's with noise (`eta`). The release draws that step anew for every image of
    the batch; here an image in which nothing was found stays what it was, to the bit.
    """

    find: Find
    variant: Variant = "paper"
    t_c: float = T_C
    """T_c / T."""
    t_d: float = 1.0
    """T_d / T: dynamics are read from here on."""
    gamma: float = 1.0
    """`paper`, `x0`."""
    back: int = 1
    """`code`: 1 is the last x0-hat."""
    shake: float = 0.1
    """`code`."""
    eta: float = 1.0
    """`code`."""

    def __call__(self, moment: Moment) -> Correction:
        window = Window(self.t_c, self.t_d)
        check_window(window, moment.steps)
        at = window.correction(moment.steps)
        if moment.i + 1 == at:
            mask = moment.cells(self.find(moment, window))
            moment.notes["found"] = mask
            new = self._shaken(moment)
            return Correction(inside(mask, new, moment.leaving), mask.float())
        if moment.i == at and self.variant == "code" and self.eta and "found" in moment.notes:
            found = moment.notes["found"].flatten(1).any(dim=1).view(-1, 1, 1, 1)
            return Correction(inside(found, stochastic(moment, self.eta), moment.leaving))
        return moment.unchanged()

    def _shaken(self, moment: Moment) -> Latents:
        if self.variant != "code":
            noised = joined(moment.clean, moment.noise(IMAGE), moment.following)
            return noised * self.gamma * moment.noise(FACTOR)
        clean = earlier(moment, self.back) + self.shake * moment.noise(FRESH)
        return joined(clean, moment.noise(IMAGE), moment.following)


@final
@dataclass(frozen=True)
class StateReplacement:
    """A baseline of ASCED's table: at T_c an earlier x0-hat, noised again, within the mask."""

    find: Find
    t_c: float = T_C
    t_d: float = 1.0
    back: int = 3
    """Steps ago."""

    def __call__(self, moment: Moment) -> Correction:
        window = Window(self.t_c, self.t_d)
        check_window(window, moment.steps)
        if moment.i + 1 != window.correction(moment.steps):
            return moment.unchanged()
        mask = moment.cells(self.find(moment, window))
        new = joined(earlier(moment, self.back), moment.noise(IMAGE), moment.following)
        return Correction(inside(mask, new, moment.leaving), mask.float())


def earlier(moment: Moment, back: int) -> Latents:
    """x0-hat of `back` steps ago, 1 being the last; the first one where there were fewer."""
    return moment.trajectory.clean[max(0, len(moment.trajectory.clean) - back)]


def stochastic(moment: Moment, eta: float) -> Latents:
    """Step i once more, with noise."""
    levels = moment.level, moment.following
    return trajectory.stochastic(moment.clean, moment.eps, *levels, eta, moment.noise(STEP))
