"""Every setting of an evaluation, with the judge; needs no torch."""

from typing import Literal

import treat.evaluate_settings


class Config(treat.evaluate_settings.Config):
    """Same prompts, same seeds: the base model against its adapters."""

    judge: Literal["detector", "oracle"] = "detector"
    """The first of the detectors, or the exact oracle of the miniature world."""
