"""Names that settings choose among; what they name needs torch (`detector.losses`, `.learning`)."""

from typing import Literal

LossName = Literal["mse", "bce", "focal", "dice"]
OptimizerName = Literal["adamw", "muon"]
