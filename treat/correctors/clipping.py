"""Score Clipping, a baseline of ASCED's table: no weighted score may change faster than a bound."""

from dataclasses import dataclass
from typing import final

import torch

from base_models.trajectory import weighted_score
from detector.score_dynamics import median
from treat.correctors.moment import Correction, Moment


@final
@dataclass(frozen=True)
class ScoreClipping:
    """|Delta(w s)| of every latent value is bounded by `bound` times the image's larger of median
    absolute deviation and mean; x0-hat, noise and the step follow from the score that is left.
    """

    bound: float = 3.0

    def __call__(self, moment: Moment) -> Correction:
        level, now = moment.level, weighted_score(moment.trajectory, -1)
        before, moment.notes["score"] = moment.notes.get("score"), now
        if before is None or before.isnan().any():
            return moment.unchanged()
        change = now - before
        sizes = change.abs().flatten(1)[None]
        deviation = median((sizes - median(sizes)).abs())
        limit = self.bound * torch.maximum(deviation, sizes.mean(dim=2, keepdim=True))
        limit = limit.view(-1, 1, 1, 1)
        kept = before + change.clamp(-limit, limit)
        clipped = change.abs() > limit
        moment.notes["score"] = kept
        clean = moment.trajectory.entering[-1] / level.signal + kept
        new = moment.going_to(clean, -kept / level.ratio)
        latents = torch.where(clipped, new, moment.leaving)
        return Correction(latents, clipped.any(dim=1, keepdim=True).float())
