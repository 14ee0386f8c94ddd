"""Random DDPM, Improved DDPM and LDM, with the schedulers that the real ones ship with."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)

from tests.tiny.flux import SIZE

COSINE = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}
"""Improved DDPM's."""
LDM = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
SIDES = (SIZE, SIZE + 16)


def ddpm(**options: Any) -> DDPMScheduler:
    """Ho et al.'s; unclipped unless said, for tests whose images are noise."""
    return DDPMScheduler(**{"clip_sample": False, **options})


def ddim(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(**{"clip_sample": False, **options})


def tiny_ddpm(scheduler: Any = None, **network: Any) -> DDPMPipeline:
    return DDPMPipeline(unet=_unet(**network), scheduler=scheduler or ddpm())


def tiny_improved(scheduler: Any = None) -> DDPMPipeline:
    return tiny_ddpm(
        scheduler or ddpm(**COSINE), out_channels=6, resnet_time_scale_shift="scale_shift"
    )


def tiny_ddim(scheduler: Any = None) -> DDIMPipeline:
    return DDIMPipeline(unet=_unet(), scheduler=scheduler or ddim())


def tiny_ldm(scheduler: Any = None, vq: bool = True) -> LDMPipeline:
    """`vq`: a `VQModel`, as CompVis' checkpoints were converted, or an `AutoencoderKL`."""
    latent = {"in_channels": 4, "out_channels": 4, "sample_size": SIZE // 2}
    pipeline: Any = LDMPipeline
    return pipeline(
        vqvae=_vq() if vq else _kl(), unet=_unet(**latent), scheduler=scheduler or ddim(**LDM)
    )


def _unet(**options: Any) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(
            **{
                "sample_size": SIDES,
                "block_out_channels": (8, 16),
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                "layers_per_block": 1,
                "attention_head_dim": 8,
                "norm_num_groups": 4,
                **options,
            }
        )
    # Fresh networks of this size hardly listen: louder weights make every input count.
    for weight in network.parameters():
        weight.data.mul_(2.0)
    return network


def _vq() -> VQModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return VQModel(**_shape(), num_vq_embeddings=64)


def _kl() -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderKL(**_shape())


def _shape() -> dict[str, Any]:
    return {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": SIZE,
        "scaling_factor": 0.7,
    }
