"""Correctors that a detector leads at every step: SARGD, DIAMOND's guidance, and PAL with TTC.

They ask for a detector that looks at images. The one that leads must not be the one that judges.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from core.contracts import Detector, Latents
from detector.score_dynamics import T_C
from treat.correctors.asced import Asced
from treat.correctors.find import ByDetector
from treat.correctors.moment import Correction, Moment
from treat.pixel_loss import straight_through_clamp


@final
@dataclass(frozen=True)
class Sargd:
    """Masked latents are drawn towards the most real x0-hat so far (SARGD, arXiv 2403.16643).

    Published for super-resolution: there the reference comes from the low-resolution image; here,
    where there is none, it is the x0-hat of the steps so far whose map is lowest, of which the mean
    is its reality score. `strength` is scaled by how much the reference is better.
    """

    detector: Detector
    threshold: float = 0.5
    strength: float = 0.5

    def __call__(self, moment: Moment) -> Correction:
        with torch.no_grad():
            maps = self.detector(moment.pictures())
        flaw = maps.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
        best, least = moment.notes.get("reference", moment.clean), moment.notes.get("flaw", flaw)
        better = flaw <= least
        moment.notes["reference"] = torch.where(better, moment.clean, best)
        moment.notes["flaw"] = torch.where(better, flaw, least)
        share = self.strength * (flaw - moment.notes["flaw"]) / flaw.clamp(min=1e-6)
        mask = moment.cells((maps >= self.threshold).float()) & (share > 0)
        clean = torch.lerp(moment.clean, moment.notes["reference"], share)
        new = torch.where(mask, moment.going_to(clean), moment.leaving)
        return Correction(new, mask.float())


@final
@dataclass(frozen=True)
class Guide:
    """x0-hat moves against the detector's gradient (DIAMOND, arXiv 2602.00883).

    Through autoencoder and detector alone, never through the network. The gradient of the map's
    sum over `threshold` is brought to a root mean square of `scale` over the image's latents,
    from t = `start` T on.
    """

    detector: Detector
    threshold: float = 0.1
    scale: float = 0.05
    start: float = 0.5

    def __call__(self, moment: Moment) -> Correction:
        if moment.steps - moment.i > self.start * moment.steps:
            return moment.unchanged()
        slope, flawed = self._slope(moment)
        size = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        moves = flawed & (size > 0)
        clean = moment.clean - self.scale * slope / size.clamp(min=1e-12)
        new = torch.where(moves, moment.going_to(clean), moment.leaving)
        return Correction(new, (new != moment.leaving).any(dim=1, keepdim=True).float())

    def _slope(self, moment: Moment) -> tuple[Latents, Tensor]:
        """The gradient at x0-hat, and whether the detector sees anything in an image at all."""
        clean = moment.clean.detach().clone().requires_grad_()
        with torch.enable_grad():
            maps = self.detector(straight_through_clamp(moment.chain.decode(clean)))
            seen = maps.detach() > self.threshold
            (slope,) = torch.autograd.grad((maps * seen).sum(), clean)
        return slope, seen.flatten(1).any(dim=1).view(-1, 1, 1, 1)


@final
@dataclass(frozen=True)
class PalTtc:
    """A baseline of ASCED's table: a segmentation detector's mask of x0-hat at T_c (as PAL4VST's,
    arXiv 2310.05590), and ASCED's correction by equation 6."""

    detector: Detector
    threshold: float = 0.5
    t_c: float = T_C
    gamma: float = 1.0

    def __call__(self, moment: Moment) -> Correction:
        found = ByDetector(self.detector, self.threshold)
        return Asced(found, t_c=self.t_c, gamma=self.gamma)(moment)
