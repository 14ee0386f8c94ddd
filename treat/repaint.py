"""Known parts of images and a base in; whole images with the rest drawn out, nothing trained.

RePaint (Lugmayr et al. 2022, arXiv 2201.09865): after each step the known part is put back, noised
to that step's level; and the sampling goes back by `jump` levels again and again, so that what is
drawn comes to agree with what is known.

Legend: b batch, c y x latent channels and cells, T sampling steps.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool
from torch import Tensor

from base_models.sample import around
from base_models.trajectory import joined, levels, noise_in, noisier, stochastic
from core.contracts import Latents
from core.errors import UserError
from core.seeds import mix
from treat.step import Chain

REPAINT = 79
"""What a draw is for; see `core.seeds`."""
STEP, KNOWN = 0, 1


def walk(steps: int, jump: int, resamples: int) -> list[int]:
    """The levels in the order in which they are reached: 0 is pure noise, T the image.

    Every `jump` levels, counted from the last noisy one, it goes back by as many, `resamples` - 1
    times (the paper's algorithm 1 with its jump length). Raises `UserError` for a jump that is
    longer than the way.
    """
    if resamples > 1 and not 1 <= jump < steps:
        raise UserError(f"a jump of {jump} is no part of {steps} steps: shorten --jump-length.")
    left = {steps - 1 - t: resamples - 1 for t in range(0, steps - jump, jump)}
    at, path = 0, [0]
    while at < steps:
        at += 1
        path.append(at)
        if left.get(at, 0):
            left[at] -= 1
            at -= jump
            path.append(at)
    return path


@torch.no_grad()
def repaint(
    chain: Chain,
    known: Latents,
    drawn: Bool[Tensor, "b 1 y x"],
    seeds: Sequence[int],
    path: Sequence[int],
    eta: float = 1.0,
) -> Latents:
    """Latents that are `known` outside of `drawn`, a pure function of each image's seed.

    `path`: a `walk`. A jump of several levels is taken at once, which has the law of its steps.
    `eta`: the share of a step's noise that is drawn anew; the paper's steps are DDPM's, 1.
    """
    model, schedule = chain.model, chain.schedule
    law = levels(model, schedule)
    size = schedule.height, schedule.width
    latents = model.noise(seeds, *size)
    for number, (at, to) in enumerate(pairwise(path)):
        fresh, other = (
            model.noise([mix(seed, REPAINT, number, kind) % 2**32 for seed in seeds], *size)
            for kind in (STEP, KNOWN)
        )
        if to < at:
            latents = noisier(latents, law[at], law[to], fresh)
            continue
        with around(chain.model.network, chain.precision):
            clean = model.clean_estimate(latents, at, schedule, chain.conditioning)
        eps = noise_in(latents, clean, law[at])
        new = stochastic(clean, eps, law[at], law[to], eta, fresh)
        latents = torch.where(drawn, new, joined(known, other, law[to]))
    return latents
