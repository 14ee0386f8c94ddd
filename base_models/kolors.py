"""Kolors: in, a `KolorsPipeline`; out, a `DiffusionModel`. Here: how it reads prompts."""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from base_models.unet import UNetModel
from core.errors import UserError

GUIDANCE = 5.0
"""The pipeline's default."""
TEXT_TOKENS = 256
"""What the pipeline pads to, on the left."""


def from_pipeline(pipeline: Any, *, guidance: float = GUIDANCE, **options: Any) -> UNetModel:
    """Take over the components of a loaded pipeline; `options` are those of `UNetModel`."""
    return UNetModel("kolors", pipeline, ChatGlm(pipeline), guidance=guidance, **options)


@final
class ChatGlm:
    """ChatGLM3, whose last token is the summary."""

    empty_is_zero = False

    def __init__(self, pipeline: Any) -> None:
        if pipeline.config.force_zeros_for_empty_prompt:
            raise UserError(
                "KolorsPipeline itself cannot draw with zeros for the empty prompt: set "
                "force_zeros_for_empty_prompt to false in model_index.json."
            )
        self.encoders = [pipeline.text_encoder]
        self.tokenizer = pipeline.tokenizer

    def read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`text`: the last hidden states but one; `pooled`: the last ones at the last token."""
        encoder = self.encoders[0]
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=TEXT_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(encoder.device)
        # Only these: newer tokenizers may add fields that ChatGLM does not take.
        fields = {name: tokens[name] for name in ("input_ids", "attention_mask", "position_ids")}
        states = encoder(**fields, output_hidden_states=True).hidden_states
        # ChatGLM's states are (n, b, d).
        return {"text": states[-2].permute(1, 0, 2).clone(), "pooled": states[-1][-1].clone()}
