"""The miniature's SDXL: the law's prompts in; two readers, a UNet and a pipeline folder out."""

from collections.abc import Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from base_models.sdxl import TwoClips
from miniature import epsilon
from miniature.law import all_prompts
from miniature.reading import in_chunks, teach_to_read
from miniature.text import clip_config, make_clip_tokenizer

WIDTH = 64
"""Of a reader's states; the summary is as wide (`epsilon.POOLED`)."""
LAYERS = 3
"""What the base reads is the last states but one."""


@final
class Sdxl:
    """One of the miniature's families; see `miniature.families`."""

    pipeline, network_folder = "StableDiffusionXLPipeline", "unet"
    guided, pixels, shifted = True, False, False

    def __init__(self) -> None:
        self.scheduler = epsilon.make_scheduler(beta_end=0.012, steps=1000)

    def make_readers(self) -> dict[str, nn.Module]:
        return {
            "text_encoder": CLIPTextModel(clip_config(LAYERS)),
            "text_encoder_2": CLIPTextModelWithProjection(clip_config(LAYERS)),
        }

    def make_tokenizers(self) -> dict[str, Any]:
        return {name.replace("tokenizer", "text_encoder"): t for name, t in tokenizers().items()}

    def teach(
        self,
        readers: dict[str, nn.Module],
        steps: Iterable[int],
        seed: int,
        held: Collection[str] = (),
    ) -> float:
        """Both must be readable: the mean of the joined tokens, and the summary."""
        clips = TwoClips(parts(readers))

        def read(prompts: list[str]) -> list[Tensor]:
            said = clips.read(prompts)
            return [said["text"].mean(dim=1), said["pooled"]]

        return teach_to_read(list(readers.values()), read, steps, seed, held)

    def conditioning(self, readers: dict[str, nn.Module]) -> dict[str, Tensor]:
        """What the readers say of every prompt, and last the zeros that stand for none."""
        said = in_chunks(TwoClips(parts(readers)).read, list(all_prompts()))
        return {name: torch.cat([rows, 0 * rows[:1]]) for name, rows in said.items()}

    def make_network(self) -> UNet2DConditionModel:
        return epsilon.make_unet(cross_attention_dim=2 * WIDTH)

    def loss(
        self, network: nn.Module, latents: Tensor, said: dict[str, Tensor], g: torch.Generator
    ) -> Tensor:
        return epsilon.epsilon_loss(network, self.scheduler, latents, said, g)

    def save(
        self, folder: Path, network: nn.Module, vae: AutoencoderKL, readers: dict[str, nn.Module]
    ) -> None:
        make: Any = StableDiffusionXLPipeline
        pipeline = make(
            unet=network,
            vae=epsilon.unshifted(vae),
            scheduler=self.scheduler,
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
            **readers,
            **tokenizers(),
        )
        epsilon.save_pipeline(folder, pipeline)


def tokenizers() -> dict[str, Any]:
    return {"tokenizer": make_clip_tokenizer(), "tokenizer_2": make_clip_tokenizer()}


def parts(readers: dict[str, nn.Module]) -> SimpleNamespace:
    """As much of a pipeline as reading takes."""
    config = {"force_zeros_for_empty_prompt": True}
    return SimpleNamespace(config=config, **readers, **tokenizers())
