"""The scheduler that a UNet base ships with in; one whose steps can be replayed alone out."""

import warnings
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

from core.errors import UserError

WHERE = "scheduler/scheduler_config.json"


def one_step_scheduler(scheduler: Any) -> Any:
    """Euler or DDIM as shipped, or DDIM in place of PNDM; `UserError` for all others.

    A step here depends on nothing but the latents it starts from, which PNDM's history breaks.
    DDIM takes the same noise levels, and SD 1.x ships with PNDM throughout.
    """
    if isinstance(scheduler, PNDMScheduler):
        warnings.warn(
            "This base's PNDM sampler looks back at earlier steps; it is drawn with DDIM at the "
            "same noise levels instead.",
            stacklevel=2,
        )
        # PNDM clips nothing; DDIM would clip x0-hat to [-1, 1] by default.
        scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    name, config = type(scheduler).__name__, scheduler.config
    if not isinstance(scheduler, (DDIMScheduler, EulerDiscreteScheduler)):
        raise UserError(
            f"This base's {name} is random or looks back at earlier steps, and treating needs a "
            f"sampler that does neither: set EulerDiscreteScheduler or DDIMScheduler in {WHERE}."
        )
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(f"This base predicts '{config.prediction_type}', not epsilon or v.")
    for setting in ("clip_sample", "thresholding"):
        if config.get(setting):
            raise UserError(
                f"Latents are not pixels in [-1, 1]: set {setting} to false in {WHERE}."
            )
    if config.get("timestep_type") == "continuous":
        raise UserError("This base's network takes continuous times, which is not supported.")
    return scheduler
