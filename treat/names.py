"""Names that settings choose among; what they name needs torch (`treat.lora_kinds`,
`treat.correctors`)."""

from typing import Literal

Architecture = Literal["schnell", "dev", "sdxl", "sd1", "sd2", "sd2-768", "sd3", "kolors"]
CorrectorName = Literal[
    "asced", "state_replacement", "score_clipping", "bayes", "sargd", "trajectory", "guide"
]
DYNAMICS, UNCERTAINTY = "score_dynamics", "bayes"
"""What finds where no detector's folder does."""
