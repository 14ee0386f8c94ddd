"""The miniature's bases without prompts: law renders in; a DDPM of pixels or an LDM out.

All categories come out of one network, as faces, horses and rooms come out of the published ones:
what an image shows is for the oracle to say. Both predict the noise.

Legend: b batch, c y x channels and cells of what is learnt (pixels in [-1, 1], or latents).
"""

from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, final

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from core.contracts import Latents
from miniature import epsilon
from miniature.bases import halve
from miniature.law import SIZE
from miniature.vae import LATENT_CHANNELS


@final
class Unconditional:
    """One of the miniature's families (see `miniature.families`): `ddpm` or `ldm`."""

    network_folder = "unet"
    guided = False

    def __init__(self, pixels: bool) -> None:
        self.pixels = pixels
        self.pipeline = "DDPMPipeline" if pixels else "LDMPipeline"
        self.shifted = pixels  # levels 0..255 to [-1, 1]; an LDM scales its latents only
        self.scheduler: Any = ddpm_scheduler() if pixels else ldm_scheduler()

    def make_readers(self) -> dict[str, nn.Module]:
        return {}

    def make_tokenizers(self) -> dict[str, Any]:
        return {}

    def teach(
        self,
        readers: dict[str, nn.Module],
        steps: Iterable[int],
        seed: int,
        held: Collection[str] = (),
    ) -> float:
        """There is nothing to read."""
        return 1.0

    def conditioning(self, readers: dict[str, nn.Module]) -> dict[str, Tensor]:
        return {}

    def make_network(self) -> UNet2DModel:
        return pixel_network() if self.pixels else latent_network()

    def loss(
        self, network: nn.Module, latents: Latents, said: dict[str, Tensor], g: torch.Generator
    ) -> Tensor:
        predict = partial(network, return_dict=False)
        return epsilon.noise_loss(lambda x, t: predict(x, t)[0], self.scheduler, latents, g)

    def save(
        self,
        folder: Path,
        network: nn.Module,
        vae: AutoencoderKL | None,
        readers: dict[str, nn.Module],
    ) -> None:
        make: Any = getattr(diffusers, self.pipeline)
        if vae is None:
            make(unet=network, scheduler=self.scheduler).save_pretrained(folder)
            halve(folder / self.network_folder)
            return
        pipeline = make(unet=network, scheduler=self.scheduler, vqvae=epsilon.unshifted(vae))
        epsilon.save_pipeline(folder, pipeline, "vqvae")


def pixel_network() -> UNet2DModel:
    """Ho et al.'s at toy size: attention at 16 pixels, and at 8."""
    return _network(
        sample_size=SIZE,
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def latent_network() -> UNet2DModel:
    """As large as the miniature's SDXL (`epsilon.make_unet`), without what reads the text."""
    return _network(
        sample_size=SIZE // epsilon.CELL,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


def _network(**shape: Any) -> UNet2DModel:
    make: Any = UNet2DModel  # its annotations do not know tuples of three
    return make(layers_per_block=1, norm_num_groups=16, attention_head_dim=32, **shape)


def ddpm_scheduler() -> DDPMScheduler:
    """Ho et al.'s linear levels; x0-hat is clipped to pixels."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=True)


def ldm_scheduler() -> DDIMScheduler:
    """CompVis' levels for its unconditional models."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0195,
        clip_sample=False,
    )
