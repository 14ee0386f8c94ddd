"""BayesDiff: where the network is unsure of its own noise, the image is drawn anew.

Kou et al. 2024, arXiv 2310.11142; `detector.bayes` has the variance. As a baseline of ASCED's table
its map at T_c is corrected by equation 6; the paper itself only measures.
"""

from dataclasses import dataclass
from typing import final

from detector.bayes import DEVIATIONS, EVERY, SAMPLES
from detector.last_layer import Laplace
from detector.score_dynamics import T_C
from treat.correctors.asced import Asced
from treat.correctors.find import ByUncertainty
from treat.correctors.moment import Correction, Moment


@final
@dataclass(frozen=True)
class Bayes:
    """`samples` further passes through the network for every `every`-th step up to T_c."""

    laplace: Laplace
    t_c: float = T_C
    gamma: float = 1.0
    samples: int = SAMPLES
    every: int = EVERY
    deviations: float = DEVIATIONS
    """Unsure: the variance is so many deviations (1.4826 MAD) over the image's median."""

    def __call__(self, moment: Moment) -> Correction:
        found = ByUncertainty(self.laplace, self.samples, self.every, self.deviations)
        return Asced(found, t_c=self.t_c, gamma=self.gamma)(moment)
