"""One sampling, written down: what entered each step and what the model took for the clean image.

Every family's x_t is signal x0 + noise eps, whatever it predicts (epsilon, v, velocity), so that a
trajectory of any of them reads alike. Divided by its signal, x_t is x0 + ratio eps (Karras et al.
2022, arXiv 2206.00364), which knows no families.

Legend: b batch, c y x latent channels and cells, s steps written down, T sampling steps.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from core.contracts import DiffusionModel, Latents, Schedule


class Level(NamedTuple):
    """x = signal x0 + noise eps."""

    signal: float
    noise: float

    @property
    def ratio(self) -> float:
        """sqrt((1 - abar) / abar); infinite for pure noise."""
        return self.noise / self.signal if self.signal else float("inf")


@dataclass
class Trajectory:
    """The steps taken so far, the first of T first."""

    levels: list[Level]
    """Of all T steps, and of what the last one leaves."""
    entering: list[Latents] = field(default_factory=list)
    clean: list[Latents] = field(default_factory=list)
    """x0-hat."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.levels) - 1

    def add(self, entering: Latents, clean: Latents) -> None:
        self.entering.append(entering)
        self.clean.append(clean)


def levels(model: DiffusionModel, schedule: Schedule) -> list[Level]:
    """Read off `noised`, which is linear in image and noise."""
    nothing = torch.zeros(1, 1, 1, 1, device=schedule.sigmas.device)
    one = nothing + 1
    return [
        Level(
            model.noised(one, i, schedule, nothing).item(),
            model.noised(nothing, i, schedule, one).item(),
        )
        for i in range(schedule.steps + 1)
    ]


def noise_in(latents: Latents, clean: Latents, level: Level) -> Latents:
    """eps-hat: what is left of the latents without x0-hat."""
    return (latents - level.signal * clean) / level.noise


def joined(clean: Latents, eps: Latents, level: Level) -> Latents:
    """signal x0 + noise eps."""
    return level.signal * clean + level.noise * eps


def stochastic(
    clean: Latents, eps: Latents, before: Level, after: Level, eta: float, noise: Latents
) -> Latents:
    """A step from `before` to `after` that keeps (1 - eta) of its noise (Song et al. 2021, arXiv
    2010.02502, equation 16); eta 1 is DDPM's, 0 DDIM's.

    In ratios r = noise / signal: r_up = eta r' sqrt(1 - r'^2 / r^2), r_down = sqrt(r'^2 - r_up^2),
    which is the same for every law of noise.
    """
    up = eta * after.ratio * (1 - (after.ratio / before.ratio) ** 2) ** 0.5
    down = max(0.0, after.ratio**2 - up**2) ** 0.5
    return after.signal * (clean + down * eps + up * noise)


def noisier(latents: Latents, before: Level, after: Level, noise: Latents) -> Latents:
    """The law of noise itself, from a level to an earlier one."""
    kept = after.signal / before.signal
    return kept * latents + (after.noise**2 - (kept * before.noise) ** 2) ** 0.5 * noise


def weighted_scores(trajectory: Trajectory) -> Float[Tensor, "s b c y x"]:
    """w s = -ratio eps-hat = x0-hat - x_t / signal, for w = (1 - abar) / sqrt(abar).

    s = -eps-hat / sqrt(1 - abar) is the score (ASCED, arXiv 2503.16218). A step that starts from
    pure noise has none, for w is infinite there: NaN.
    """
    return torch.stack([weighted_score(trajectory, i) for i in range(len(trajectory.clean))])


def weighted_score(trajectory: Trajectory, i: int) -> Latents:
    """The same of step i alone; from the end, where negative."""
    i = range(len(trajectory.clean))[i]
    clean, level = trajectory.clean[i], trajectory.levels[i]
    if not level.signal:
        return torch.full_like(clean, float("nan"))
    return clean - trajectory.entering[i] / level.signal
