"""The scheduler that a UNet base ships with in; one whose steps can be replayed alone out."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from jaxtyping import Float
from torch import Tensor

from core import seeds as seeding
from core.contracts import Latents, Schedule
from core.errors import UserError

WHERE = "scheduler/scheduler_config.json"
Predict = Callable[[Latents, Tensor], Latents]
"""Scaled noisy latents and their training step -> epsilon or v."""
Amplify = Callable[[Latents], tuple[Latents, Latents]]


@final
class StepSampler:
    """A scheduler asked for one step at a time; each answer depends on its arguments alone."""

    def __init__(self, scheduler: Any) -> None:
        """`scheduler`: what `one_step_scheduler` returned."""
        self.scheduler = scheduler
        self._set: dict[tuple[int, torch.device], Any] = {}

    def schedule(self, steps: int, height: int, width: int, device: torch.device) -> Schedule:
        """The scheduler's own times, and sigma = sqrt((1 - abar) / abar) at each."""
        sampler = self._at(steps, device)
        if len(sampler.timesteps) != steps:
            raise UserError(f"This base's scheduler has no {steps} steps: choose another number.")
        if isinstance(sampler, EulerDiscreteScheduler):
            sigmas = sampler.sigmas
        else:
            last = sampler.final_alpha_cumprod[None]
            abar = torch.cat([sampler.alphas_cumprod[sampler.timesteps.cpu()], last])
            sigmas = ((1 - abar) / abar) ** 0.5
        return Schedule(sigmas, sampler.timesteps.float(), height, width)

    def move(
        self, predict: Predict, latents: Latents, i: int, steps: int
    ) -> tuple[Latents, Latents]:
        """The latents after step i, and x0-hat before it."""
        sampler = self._at(steps, latents.device, i)
        t = sampler.timesteps[i]
        x = latents * sampler.init_noise_sigma if i == 0 else latents
        prediction = predict(sampler.scale_model_input(x, t), t)
        return sampler.step(prediction, t, x, return_dict=False)

    def noised(self, clean: Latents, i: int, schedule: Schedule, noise: Latents) -> Latents:
        """x0 + sigma eps for Euler (over its first deviation at step 0), DDIM's law for DDIM."""
        sampler, sigma = self._at(schedule.steps, clean.device), schedule.sigmas[i].to(clean)
        noisy = clean + sigma * noise
        if isinstance(sampler, EulerDiscreteScheduler):
            return noisy / sampler.init_noise_sigma if i == 0 else noisy
        return noisy / (1 + sigma**2).sqrt()

    def loss(
        self,
        predict: Predict,
        clean: Latents,
        seeds: Sequence[int],
        amplify: Amplify = lambda noise: (noise, noise),
    ) -> Float[Tensor, ""]:
        """Mean of |prediction - target|^2 at x = sqrt(abar) x0 + sqrt(1 - abar) eps.

        t uniform over the training steps (Ho et al. 2020, arXiv 2006.11239, equation 14). Target:
        eps, or v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans and Ho 2022, arXiv 2202.00512).
        `amplify`: eps -> what stands for it in x, and in the target.
        """
        generators = [seeding.generator(seed) for seed in seeds]
        steps = self.scheduler.config.num_train_timesteps
        t = torch.cat([torch.randint(steps, (1,), generator=g) for g in generators])
        eps = torch.stack([torch.randn(clean.shape[1:], generator=g) for g in generators]).to(clean)
        abar = self.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1).to(clean)
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        added, asked = amplify(eps)
        target = signal * asked - noise * clean if velocity else asked
        x = signal * clean + noise * added
        return (predict(x, t.to(clean.device)) - target).square().mean()

    def _at(self, steps: int, device: torch.device, at: int = 0) -> Any:
        """A scheduler that stands before step `at`: a copy, because it counts what it is asked."""
        if not 1 <= steps <= self.scheduler.config.num_train_timesteps:
            raise UserError(
                f"{steps} sampling steps are not between 1 and "
                f"{self.scheduler.config.num_train_timesteps}, the steps this base was trained on."
            )
        key = steps, device  # set up once, with real numbers, also for a dry run
        if key not in self._set:
            self._set[key] = copy.copy(self.scheduler)
            self._set[key].set_timesteps(steps, device=device)
        sampler = copy.copy(self._set[key])
        if isinstance(sampler, EulerDiscreteScheduler):
            sampler.set_begin_index(at)
        return sampler


def one_step_scheduler(scheduler: Any, pixels: bool = False) -> Any:
    """Euler or DDIM as shipped, or DDIM in place of PNDM and DDPM; `UserError` for all others.

    A step here depends on nothing but the latents it starts from, which PNDM's history breaks, and
    DDPM's noise. DDIM takes the same noise levels; SD 1.x ships with PNDM throughout. `pixels`: the
    base draws pixels in [-1, 1], so that x0-hat may be clipped to them.
    """
    if isinstance(scheduler, PNDMScheduler):
        warnings.warn(
            "This base's PNDM sampler looks back at earlier steps; it is drawn with DDIM at the "
            "same noise levels instead.",
            stacklevel=2,
        )
        # PNDM clips nothing; DDIM would clip x0-hat to [-1, 1] by default.
        scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    if isinstance(scheduler, DDPMScheduler):
        # DDPM's sigma_t = 0 is DDIM (Song et al. 2021, arXiv 2010.02502); learnt variances have
        # no part in it.
        scheduler = DDIMScheduler.from_config(scheduler.config)
    name, config = type(scheduler).__name__, scheduler.config
    if not isinstance(scheduler, (DDIMScheduler, EulerDiscreteScheduler)):
        raise UserError(
            f"This base's {name} is random or looks back at earlier steps, and treating needs a "
            f"sampler that does neither: set EulerDiscreteScheduler or DDIMScheduler in {WHERE}."
        )
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(f"This base predicts '{config.prediction_type}', not epsilon or v.")
    for setting in ("clip_sample", "thresholding"):
        if config.get(setting) and not pixels:
            raise UserError(
                f"Latents are not pixels in [-1, 1]: set {setting} to false in {WHERE}."
            )
    if config.get("timestep_type") == "continuous":
        raise UserError("This base's network takes continuous times, which is not supported.")
    return scheduler
