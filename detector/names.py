"""Names that settings choose among; what they name needs torch (`detector.losses`, `.learning`,
`.export`, `.score_dynamics`)."""

from typing import Literal

LossName = Literal["mse", "bce", "focal", "dice", "binary", "binary_focal"]
OptimizerName = Literal["adamw", "muon"]
Format = Literal["transformers", "program", "onnx"]
DynamicsVariant = Literal["paper", "x0", "code"]
