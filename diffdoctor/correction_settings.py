"""Every setting of a correction, with the judge; needs no torch."""

from typing import Literal

import treat.correct_settings


class Config(treat.correct_settings.Config):
    """Same prompts, same seeds: a base model's images before and after a corrector."""

    judge: Literal["detector", "oracle"] = "detector"
    """The first of the judges, or the exact oracle of the miniature world."""
