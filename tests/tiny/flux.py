"""A random FLUX: the base model of most tests."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)

from base_models.flux import Flux
from tests.tiny.text import clip, clip_tokenizer, t5, t5_tokenizer

SIZE = 32
"""Pixels on a side: a 2x autoencoder and 2x2 cells a token make 64 tokens."""


def tiny_pipeline(
    seed: int = 0, *, guidance_embeds: bool = False, dynamic_shift: bool = False
) -> FluxPipeline:
    """Random weights from `seed`; shift and scale of the autoencoder are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, second = clip_tokenizer(), t5_tokenizer()
        return FluxPipeline(
            transformer=_transformer(guidance_embeds),
            vae=tiny_vae(),
            text_encoder=clip(len(first)),
            text_encoder_2=t5(len(second)),
            tokenizer=first,
            tokenizer_2=second,
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=dynamic_shift
            ),
        )


def tiny_flux(seed: int = 0, **options: bool) -> Flux:
    return Flux.from_pipeline(tiny_pipeline(seed, **options))


def save_tiny(folder: Path, seed: int = 0) -> Path:
    tiny_pipeline(seed).save_pretrained(folder)
    return folder


def _transformer(guidance_embeds: bool) -> FluxTransformer2DModel:
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    # Fresh networks of this size hardly move the noise: louder weights make every input count.
    for weight in network.parameters():
        weight.data.mul_(3.0)
    return network


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.3,
        shift_factor=0.15,
    )
