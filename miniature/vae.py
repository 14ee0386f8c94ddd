"""The miniature's 4x autoencoder: law renders in, an `AutoencoderKL` out.

Half of every batch is cut and mixed from two renders, so that the decoder also draws what the
law forbids: a base model's mistakes must survive it, or the oracle would judge the decoder.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from torch import Tensor

from core.contracts import Images
from core.seeds import generator
from miniature.law import CATEGORIES, SIZE, draw_off_grid
from miniature.paint import render

LATENT_CHANNELS = 12


def make_vae() -> AutoencoderKL:
    make: Any = AutoencoderKL  # its annotations do not know tuples of three
    return make(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def training_batch(size: int, *seeds: int) -> Images:
    """`size` renders off the grid, tinted a little, every second one cut and mixed."""
    g = generator(*seeds)
    share = -(-size // len(CATEGORIES))
    parts = [render(draw_off_grid(name, share, g, tint=0.06)) for name in CATEGORIES]
    images = torch.cat(parts)[torch.randperm(share * len(parts), generator=g)][:size].clamp(0, 1)
    down, right = torch.randint(-12, 13, (2,), generator=g).tolist()
    other = images.roll(1, 0).roll((down, right), (2, 3))
    coarse = torch.rand(size, 1, 5, 5, generator=g)
    mask = F.interpolate(coarse, (SIZE, SIZE), mode="bilinear", align_corners=False) > 0.55
    mask[::2] = False
    return torch.where(mask, other, images)


def posterior(vae: AutoencoderKL, images: Images) -> DiagonalGaussianDistribution:
    """What the encoder says of images in [0, 1]."""
    encode: Any = vae.encode
    return encode(images * 2 - 1).latent_dist


def reconstruction_loss(output: Images, target: Images) -> Float[Tensor, ""]:
    """L1 on pixels and on their differences: edges count, since the oracle lives on them."""
    error = output - target
    across, down = error.diff(dim=3), error.diff(dim=2)
    return error.abs().mean() + across.abs().mean() + down.abs().mean() + 2 * error.pow(2).mean()


def vae_loss(vae: AutoencoderKL, images: Images, noise: Tensor, kl: float) -> Float[Tensor, ""]:
    """Reconstruction of images in [0, 1] plus `kl` times the divergence a latent value."""
    seen = posterior(vae, images)
    decode: Any = vae.decode
    output = decode(seen.mean + seen.std * noise).sample.float()
    divergence = 0.5 * (seen.mean**2 + seen.var - 1 - seen.logvar).mean()
    return reconstruction_loss((output + 1) / 2, images) + kl * divergence


def make_optimizer(weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)


def learn(
    model: AutoencoderKL,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    *,
    seeds: Sequence[int],
    step: int,
    count: int,
    bf16: bool,
) -> None:
    """Step `step` of `count`, whose rate falls by a cosine to 1 %, on 16 of the 8-bit images.

    On the model's device; the seeds and the step decide which images, and their noise.
    """
    place, group = next(model.parameters()).device, optimizer.param_groups[0]
    g = generator(*seeds, step)
    group["lr"] = 2e-3 * min(1, (step + 1) / 100) * (0.51 + 0.5 * math.cos(math.pi * step / count))
    batch = images[torch.randint(len(images), (16,), generator=g)].float().div(255)
    noise = torch.randn(16, LATENT_CHANNELS, 16, 16, generator=g).to(place)
    batch = batch.to(place).contiguous(memory_format=torch.channels_last)
    with torch.autocast(place.type, torch.bfloat16, enabled=bf16):
        loss = vae_loss(model, batch, noise, 2e-4)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
