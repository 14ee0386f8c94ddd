"""SD 1.x, 2.x: in, a `StableDiffusionPipeline`; out, a `DiffusionModel`. Here: its prompts.

The pipeline's safety checker is no part of the model: flagged images are not blackened here.
"""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from base_models.unet import UNetModel, clip_tokens

GUIDANCE = 7.5
"""The pipeline's default."""


def from_pipeline(pipeline: Any, *, guidance: float = GUIDANCE, **options: Any) -> UNetModel:
    """Take over the components of a loaded pipeline; `options` are those of `UNetModel`."""
    return UNetModel("sd", pipeline, OneClip(pipeline), guidance=guidance, **options)


@final
class OneClip:
    """One CLIP encoder; no summary."""

    empty_is_zero = False

    def __init__(self, pipeline: Any) -> None:
        self.encoders = [pipeline.text_encoder]
        self.tokenizer = pipeline.tokenizer

    def read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`text`: the last hidden states, normalised."""
        encoder, tokens = self.encoders[0], clip_tokens(self.tokenizer, prompts)
        # A field of some converted checkpoints, absent from most configs.
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(encoder.device) if masked else None
        return {"text": encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]}
