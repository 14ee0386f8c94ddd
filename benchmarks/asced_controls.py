"""Controls of ASCED's table: a row's corrector in, the same one at a place of no consequence out.

What equation 6 puts in is damped noise, of which less comes than of the image that was there. How
much of a row's gain is due to *where* it mends, these tell.
"""

from dataclasses import dataclass, replace
from typing import Literal, final

import torch

from detector.score_dynamics import Window
from treat.correctors.asced import Asced
from treat.correctors.find import Find
from treat.correctors.moment import Mask, Moment

Place = Literal["shifted", "everywhere"]


@final
@dataclass(frozen=True)
class Elsewhere:
    """As much as is found, half the image away in both directions; or the whole image."""

    find: Find
    place: Place

    def __call__(self, moment: Moment, window: Window) -> Mask:
        mask = self.find(moment, window)
        if self.place == "everywhere":
            return torch.ones_like(mask)
        h, w = mask.shape[-2:]
        return mask.roll((h // 2, w // 2), (2, 3))


def elsewhere(corrector: Asced, place: Place) -> Asced:
    return replace(corrector, find=Elsewhere(corrector.find, place))
