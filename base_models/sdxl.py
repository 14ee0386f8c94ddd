"""SDXL: in, a `StableDiffusionXLPipeline`; out, a `DiffusionModel`. Here: how it reads prompts."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from base_models.unet import UNetModel, clip_tokens

GUIDANCE = 5.0
"""The pipeline's default."""


def from_pipeline(pipeline: Any, *, guidance: float = GUIDANCE, **options: Any) -> UNetModel:
    """Take over the components of a loaded pipeline; `options` are those of `UNetModel`."""
    return UNetModel("sdxl", pipeline, TwoClips(pipeline), guidance=guidance, **options)


@final
class TwoClips:
    """Two CLIP encoders side by side; the second also gives the summary."""

    def __init__(self, pipeline: Any) -> None:
        self.encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
        self.tokenizers = [pipeline.tokenizer, pipeline.tokenizer_2]
        self.empty_is_zero = pipeline.config.get("force_zeros_for_empty_prompt", False)

    def read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`text`: the last hidden states but one, joined; `pooled`: the second's projection."""
        words, pooled = self.states(prompts)
        return {"text": torch.cat(words, dim=-1), "pooled": pooled[1]}

    def states(self, prompts: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each encoder: the last hidden states but one, and the projected summary, if any."""
        said = [
            encoder(
                clip_tokens(tokenizer, prompts).input_ids.to(encoder.device),
                output_hidden_states=True,
            )
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]
        return [one.hidden_states[-2] for one in said], [one[0] for one in said]
