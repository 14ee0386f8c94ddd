"""Random SDXL, SD and Kolors, with the schedulers that the real ones ship with."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    KolorsPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.tiny import glm, text
from tests.tiny.flux import SIZE

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STABLE = {**BETAS, "steps_offset": 1, "set_alpha_to_one": False}
TIME_WIDTH = 8


def euler(**options: Any) -> EulerDiscreteScheduler:
    """SDXL's."""
    return EulerDiscreteScheduler(
        **{**BETAS, "steps_offset": 1, "timestep_spacing": "leading", **options}
    )


def kolors_euler(**options: Any) -> EulerDiscreteScheduler:
    return euler(beta_end=0.014, num_train_timesteps=1100, **options)


def ddim(**options: Any) -> DDIMScheduler:
    """SD 2.1's."""
    return DDIMScheduler(**{**STABLE, "clip_sample": False, **options})


def pndm(**options: Any) -> PNDMScheduler:
    """SD 1.5's."""
    return PNDMScheduler(**{**STABLE, "skip_prk_steps": True, **options})


def tiny_sdxl(
    scheduler: Any = None,
    *,
    force_zeros: bool = True,
    vae: dict[str, Any] | None = None,
    first_width: int = text.WIDTH,
) -> StableDiffusionXLPipeline:
    """`first_width`: of the first text encoder; diffusers tells the two by it in a single file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = text.clip_tokenizer()
        return StableDiffusionXLPipeline(
            unet=_unet(
                cross_attention_dim=first_width + text.WIDTH,
                use_linear_projection=True,
                **_with_sizes(),
            ),
            vae=_vae(**(vae or {})),
            text_encoder=text.clip(len(tokenizer), layers=2, width=first_width),
            text_encoder_2=text.clip_with_projection(len(tokenizer)),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=scheduler or euler(),
            force_zeros_for_empty_prompt=force_zeros,
            add_watermarker=False,
        )


def tiny_sd(scheduler: Any = None) -> StableDiffusionPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = text.clip_tokenizer()
        return StableDiffusionPipeline(
            unet=_unet(cross_attention_dim=text.WIDTH),
            vae=_vae(),
            text_encoder=text.clip(len(tokenizer)),
            tokenizer=tokenizer,
            scheduler=scheduler or ddim(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def tiny_kolors(scheduler: Any = None) -> KolorsPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = glm.glm_tokenizer()
        return KolorsPipeline(
            unet=_unet(
                cross_attention_dim=24,
                encoder_hid_dim=text.WIDTH,
                encoder_hid_dim_type="text_proj",
                **_with_sizes(),
            ),
            vae=_vae(),
            text_encoder=glm.glm(tokenizer.vocab_size),
            tokenizer=tokenizer,
            scheduler=scheduler or kolors_euler(),
        )


def _with_sizes() -> dict[str, Any]:
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": 6 * TIME_WIDTH + text.WIDTH,
    }


def _unet(**options: Any) -> UNet2DConditionModel:
    network = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    )
    # Fresh networks of this size hardly listen: louder weights make every input count.
    for weight in network.parameters():
        weight.data.mul_(2.0)
    return network


def _vae(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=0.7,
        **options,
    )
