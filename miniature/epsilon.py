"""The miniature's UNets: scaled latents of law renders in, networks that predict the noise out.

What SDXL and Kolors have in common: network, noise levels, loss, and how a folder is written.
Legend: b batch, c y x latent channels and cells, n d text tokens and width, e summary.
"""

import copy
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from jaxtyping import Float, Int
from torch import Tensor

from core.contracts import Latents
from miniature.bases import halve
from miniature.law import SIZE
from miniature.vae import LATENT_CHANNELS

CELL = 4
"""Pixels on the side of a latent cell."""
POOLED = 64
TIME_WIDTH = 16
WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_unet(**text: Any) -> UNet2DConditionModel:
    """SDXL's network at toy size: no attention at the highest level; `text` says what it reads.

    Small on purpose. Of one with 4.0M weights (widths 48, 96, 96, attention at every level) that
    had seen 1.5 million latents, the oracle flags 3 % at 25 steps: there is nothing to heal.
    """
    make: Any = UNet2DConditionModel  # its annotations do not know tuples of three
    return make(
        sample_size=SIZE // CELL,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 3),  # the number of heads, as diffusers reads it
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_WIDTH + POOLED,
        **text,
    )


def make_scheduler(beta_end: float, steps: int) -> EulerDiscreteScheduler:
    """As SDXL and Kolors ship it."""
    return EulerDiscreteScheduler(
        num_train_timesteps=steps,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=beta_end,
        timestep_spacing="leading",
        steps_offset=1,
    )


def times(b: int, steps: int, g: torch.Generator) -> Int[Tensor, " b"]:
    """Training steps of a batch: stratified uniform."""
    u = (torch.arange(b, device=g.device) + torch.rand(b, generator=g, device=g.device)) / b
    return (u * steps).long().clamp(max=steps - 1)


def epsilon_loss(
    network: Callable[..., Any],
    scheduler: EulerDiscreteScheduler,
    clean: Latents,
    said: dict[str, Tensor],
    g: torch.Generator,
) -> Float[Tensor, ""]:
    """See `noise_loss`; `said`: `text` (b, n, d) and `pooled` (b, e), on the latents' device."""

    def predict(x: Latents, t: Tensor) -> Latents:
        return network(
            x,
            t,
            encoder_hidden_states=said["text"],
            added_cond_kwargs={"text_embeds": said["pooled"], "time_ids": sizes(clean)},
            return_dict=False,
        )[0]

    return noise_loss(predict, scheduler, clean, g)


def noise_loss(
    predict: Callable[[Latents, Tensor], Latents],
    scheduler: Any,
    clean: Latents,
    g: torch.Generator,
) -> Float[Tensor, ""]:
    """Mean squared error of the noise at x = sqrt(abar) x0 + sqrt(1 - abar) eps.

    On the device of `clean`; g may be elsewhere.
    """
    t = times(len(clean), len(scheduler.alphas_cumprod), g).to(clean.device)
    noise = torch.randn(clean.shape, generator=g, device=g.device).to(clean)
    abar = signal(scheduler, clean.device)[t].view(-1, 1, 1, 1)
    prediction = predict(abar.sqrt() * clean + (1 - abar).sqrt() * noise, t)
    return (prediction.float() - noise).square().mean()


@functools.cache
def signal(scheduler: Any, place: torch.device) -> Float[Tensor, " t"]:
    """abar of every training step, kept on a device: a CUDA graph takes nothing from the host."""
    return scheduler.alphas_cumprod.to(place)


def sizes(latents: Latents) -> Float[Tensor, "b 6"]:
    """Original size, corner of the crop, target size in pixels, as `base_models.unet` gives."""
    told = torch.zeros(len(latents), 6, device=latents.device)
    told[:, 0::4] = latents.shape[-2] * CELL
    told[:, 1::4] = latents.shape[-1] * CELL
    return told


def unshifted(vae: AutoencoderKL) -> AutoencoderKL:
    """A copy whose config says what these pipelines do anyway: scale latents, never shift them.

    Nor does it say from which folder the autoencoder was read.
    """
    own = copy.deepcopy(vae)
    own.register_to_config(shift_factor=0.0, _name_or_path="")
    return own


def save_pipeline(folder: Path, pipeline: Any, autoencoder: str = "vae") -> None:
    """Write a whole pipeline: the network in fp16, all else in fp32.

    The weights of the `autoencoder` (its folder) become a link where the newest FLUX grade beside
    it has the same.
    """
    weights, shared = folder / autoencoder / WEIGHTS, folder.parent / "newest/vae" / WEIGHTS
    weights.unlink(missing_ok=True)  # else an older link would be written through
    pipeline.save_pretrained(folder, safe_serialization=True)
    halve(folder / "unet")
    if shared.is_file() and shared.read_bytes() == weights.read_bytes():
        weights.unlink()
        weights.symlink_to(os.path.relpath(shared, weights.parent))
