"""What the flow-matching families (FLUX, SD 3) do alike: noise levels, latents, the offline loss.

Legend: b batch, h w pixels, c y x latent channels and cells.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from core import seeds as seeding
from core.contracts import Images, Latents
from core.errors import UserError

Velocity = Callable[[Latents, Float[Tensor, " b"]], Latents]
"""Noisy latents and their times -> eps - x0, as the network sees it."""


def check_deterministic(scheduler: Any) -> None:
    """Raise `UserError` for a sampler whose steps are drawn anew."""
    if scheduler.config.get("stochastic_sampling"):
        raise UserError(
            "This base's scheduler is stochastic, and treating needs a deterministic one: set "
            "stochastic_sampling to false in scheduler/scheduler_config.json."
        )


def dynamic_shift(scheduler: Any, tokens: int) -> float:
    """mu: the pipelines' line through (base tokens, base shift) and (max tokens, max shift)."""
    config = scheduler.config
    base, top = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (top - base)
    return tokens * slope + (low - slope * base)


def euler(
    latents: Latents, velocity: Latents, sigma: Tensor, following: Tensor
) -> tuple[Latents, Latents]:
    """The latents after a step from sigma to the `following` one, and x0-hat before it."""
    return latents + (following - sigma) * velocity, latents - sigma * velocity


def decode(vae: Any, latents: Latents) -> Images:
    z = latents / vae.config.scaling_factor + vae.config.shift_factor
    return vae.decode(z.to(vae.dtype), return_dict=False)[0].float() * 0.5 + 0.5


def encode(vae: Any, images: Images) -> Latents:
    """(z - shift) * scale, z the mode of the posterior."""
    z = vae.encode((images * 2 - 1).to(vae.dtype)).latent_dist.mode().float()
    return (z - vae.config.shift_factor) * vae.config.scaling_factor


def flow_loss(
    velocity: Velocity, scheduler: Any, mu: float, clean: Latents, seeds: Sequence[int]
) -> Float[Tensor, ""]:
    """Mean of |v - (eps - x0)|^2 at x = (1 - sigma) x0 + sigma eps.

    sigma: logit-normal (Esser et al. 2024, arXiv 2403.03206, section 3.1), then the
    scheduler's shift, so that the times met in training are those met in sampling.
    """
    sigma, eps = _draw_times(scheduler, mu, clean, seeds)
    x = (1 - sigma) * clean + sigma * eps
    times = sigma.flatten() * scheduler.config.num_train_timesteps
    return (velocity(x, times) - (eps - clean)).square().mean()


def _draw_times(
    scheduler: Any, mu: float, clean: Latents, seeds: Sequence[int]
) -> tuple[Float[Tensor, "b 1 1 1"], Latents]:
    generators = [seeding.generator(seed) for seed in seeds]
    times = torch.stack([torch.randn(1, 1, 1, generator=g) for g in generators]).sigmoid()
    eps = torch.stack([torch.randn(clean.shape[1:], generator=g) for g in generators])
    return _shifted(scheduler, mu, times).to(clean), eps.to(clean)


def _shifted(scheduler: Any, mu: float, times: Tensor) -> Tensor:
    if scheduler.config.use_dynamic_shifting:
        return scheduler.time_shift(mu, 1.0, times)
    return scheduler.shift * times / (1 + (scheduler.shift - 1) * times)
