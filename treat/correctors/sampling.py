"""A chain, noise and a corrector in; the corrected latents, the masks and the way there out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from base_models.sample import around
from base_models.trajectory import Trajectory, levels
from core.contracts import Latents
from treat.correctors.moment import Corrector, Mask, Moment
from treat.step import Chain


class Drawn(NamedTuple):
    """Final latents, all steps as they were walked, and the union of what was corrected."""

    latents: Latents
    trajectory: Trajectory
    mask: Mask | None
    """At the latents' size; None where no corrector looked."""


@torch.no_grad()
def draw_corrected(
    chain: Chain, noise: Latents, seeds: Sequence[int], corrector: Corrector | None
) -> Drawn:
    """All T steps, each one pass through the network; without a corrector a plain sampling."""
    trajectory = Trajectory(levels(chain.model, chain.schedule))
    latents, notes, mask = noise, {}, None
    for i in range(chain.schedule.steps):
        with around(chain.model.network, chain.precision):
            leaving, clean = chain.model.move(latents, i, chain.schedule, chain.conditioning)
        trajectory.add(latents, clean)
        latents = leaving
        if corrector is not None and i + 1 < chain.schedule.steps:  # the last leaves no noise
            latents, found = corrector(Moment(chain, trajectory, leaving, seeds, notes))
            if found is not None:
                mask = found if mask is None else torch.maximum(mask, found)
    return Drawn(latents, trajectory, mask)
