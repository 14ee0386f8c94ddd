"""Noise in, what a reward looks at and what then learns out: the chain itself, or redrawn steps.

Direct-Align (SRPO, Shen et al. 2025, arXiv 2509.06942): the image is noised to the level of a step
with noise that is known, the model takes that step, and the rest of the noise is taken off again
exactly. No chain is held, an early step learns as cheaply as a late one, and one drawing serves
several redraws; of the last step, they are DRaFT-LV's (Clark et al. 2023, arXiv 2309.17400).
Legend: b batch, c y x latent channels and cells, T sampling steps.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from core.contracts import Latents
from core.seeds import mix
from treat.step import Chain, Taped, draw


class Drawing(NamedTuple):
    """Clean latents, the steps that learn from their gradient, and the share of it they get."""

    latents: Latents
    tape: list[Taped]
    share: float


def drawings(
    chain: Chain,
    noise: Latents,
    learning: Sequence[int],
    redraw_seeds: Sequence[int] | None,
    recompute: bool = True,
) -> Iterator[Drawing]:
    """The chain with its `learning` steps; or, with seeds, one drawing and a redraw by each step.

    The seeds, one an image, decide the noise of the redraws.
    """
    if redraw_seeds is None:
        yield Drawing(*draw(chain, noise, learning, recompute), 1.0)
        return
    finished, _ = draw(chain, noise, ())
    size = chain.schedule.height, chain.schedule.width
    for number, i in enumerate(learning):
        over = chain.model.noise([mix(seed, number) for seed in redraw_seeds], *size)
        latents, taped, share = redraw_step(chain, finished, i, over, recompute)
        yield Drawing(latents, [taped], share / len(learning))


def redraw_step(
    chain: Chain, clean: Latents, i: int, noise: Latents, recompute: bool = True
) -> tuple[Latents, Taped, float]:
    """Step i of T on `clean` under unit `noise`: clean latents again, the tape, the share.

    The gradient at the latents times the share is the gradient at what left the step
    (`treat.step.replay` takes it from there).
    """
    entering = chain.model.noised(clean, i, chain.schedule, noise)
    with torch.set_grad_enabled(not recompute):
        leaving = chain.learning_step(entering, i)
    after = leaving.detach()
    tape = Taped(i, entering, None if recompute else leaving)
    # `noised` is linear in both: what is left of the image, and the noise that lies over it.
    nothing = torch.zeros_like(clean)
    over = chain.model.noised(nothing, i + 1, chain.schedule, noise)
    signal = chain.model.noised(nothing + 1, i + 1, chain.schedule, nothing).flatten()[0].item()
    return (after - over) / signal, tape, 1 / signal
