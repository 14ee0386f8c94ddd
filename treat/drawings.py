"""Noise in, what a reward looks at and what then learns out: the chain itself, or redrawn steps.

Direct-Align (SRPO, Shen et al. 2025, arXiv 2509.06942): the image is noised to the level of a step
with noise that is known, the model takes that step, and the rest of the noise is taken off again
exactly. No chain is held, an early step learns as cheaply as a late one, and one drawing serves
several redraws; of the last step, they are DRaFT-LV's (Clark et al. 2023, arXiv 2309.17400).
Legend: b batch, c y x latent channels and cells, T sampling steps.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from core.contracts import Latents
from core.memory import give_back
from core.seeds import mix
from treat.step import Chain, Taped, draw, latent_gradient, replay
from treat.terms import RewardTerm


class Drawing(NamedTuple):
    """Clean latents, and the steps that learn from their gradient."""

    latents: Latents
    tape: list[Taped]
    factor: float | Tensor = 1.0
    """The gradient at what left the last taped step, over that at the latents."""
    part: float = 1.0
    """Weight among the drawings of the same image."""


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
        yield Drawing(*draw(chain, noise, learning, recompute))
        return
    finished, _ = draw(chain, noise, ())
    size = chain.schedule.height, chain.schedule.width
    for number, i in enumerate(learning):
        over = chain.model.noise([mix(seed, number) for seed in redraw_seeds], *size)
        again = redraw_step(chain, finished, i, over, recompute)
        yield again._replace(part=1 / len(learning))


def tidied(drawn: Iterable[Drawing]) -> Iterator[Drawing]:
    """The same; what is freed goes back to the system before the reward, and after the replay."""
    for one in drawn:
        give_back()
        yield one
        give_back()


def accumulate_gradient(
    chain: Chain, drawn: Iterable[Drawing], term: RewardTerm, share: float, two_pass: bool = False
) -> dict[str, Tensor]:
    """Add `share` of the term's gradient to the adapters' `.grad`; its figures, averaged."""
    figures: dict[str, Tensor] = {}
    for latents, tape, factor, part in drawn:
        pull = latent_gradient(chain, latents, term, two_pass)
        replay(chain, tape, pull * (share * factor * part))
        for name, value in term.figures.items():
            figures[name] = figures.get(name, 0.0) + part * value
    return figures


def redraw_step(
    chain: Chain, clean: Latents, i: int, noise: Latents, recompute: bool = True
) -> Drawing:
    """Step i of T on `clean` under unit `noise`."""
    entering = chain.model.noised(clean, i, chain.schedule, noise)
    with torch.set_grad_enabled(not recompute):
        leaving = chain.learning_step(entering, i)
    after = leaving.detach()
    tape = Taped(i, entering, None if recompute else leaving)
    # `noised` is linear in both: what is left of the image, and the noise that lies over it.
    nothing = torch.zeros_like(clean)
    over = chain.model.noised(nothing, i + 1, chain.schedule, noise)
    signal = chain.model.noised(nothing + 1, i + 1, chain.schedule, nothing).flatten()[0]
    return Drawing((after - over) / signal, [tape], 1 / signal)
