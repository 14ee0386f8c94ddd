"""Names that settings choose among; what they name needs torch (`base_models.quantise`)."""

from typing import Literal

Quantisation = Literal["no", "int8", "fp8", "nf4"]
