"""A checkpoint of guided-diffusion or improved-diffusion in; a base that opens here and in
diffusers out.

    diffdoctor convert-base ema_0.9999_500000.pt --image-size 256 --num-head-channels 64 --out base

What no tensor says stands in the flags it was trained with, which are asked for by their names. A
network that learnt its variances keeps them, six channels out; DDIM's steps have no use for them.
"""

from pathlib import Path
from typing import Annotated, Literal

import safetensors
import safetensors.torch
import tyro
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from pydantic import Field, model_validator
from torch import Tensor

import core.config
from base_models.guided_diffusion import Heads, network, scheduler
from base_models.load import check_base
from core.errors import UserError
from core.storage import check_room, check_writable, remove_tree
from detector.pickled import read_pickled


class Config(core.config.Config):
    """Bring an unconditional UNet of guided-diffusion into a diffusers folder."""

    source: Annotated[Path, tyro.conf.Positional, core.config.placed("CHECKPOINT")]
    """The weights: .pt, .pth, .bin or .safetensors; best the averaged ones (ema_...)."""
    out: Path
    """Folder of the pipeline; nothing may stand there."""
    image_size: int = Field(ge=8)
    """Pixels on the side (their --image_size)."""
    num_heads: int | None = Field(None, ge=1)
    """Heads of every attention (--num_heads); this or the next."""
    num_head_channels: int | None = Field(None, ge=1)
    """Channels of every head (--num_head_channels)."""
    use_new_attention_order: bool = False
    """As the flag of that name."""
    noise_schedule: Literal["linear", "cosine"] = "linear"
    """--noise_schedule; Improved DDPM's own is `cosine`."""
    diffusion_steps: int = Field(1000, ge=2)
    """--diffusion_steps; Improved DDPM's own are 4000."""
    rescale_timesteps: bool = False
    """--rescale_timesteps, which is improved-diffusion's default: of 4000 levels every fourth is
    kept."""

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if self.num_heads is not None and self.num_head_channels is not None:
            raise ValueError("num_heads and num_head_channels exclude each other: give one")
        return self


def main(config: Config) -> None:
    """Read, rename, check, write."""
    source, out = config.source.expanduser(), config.out.expanduser()
    check_files(source, out)
    state = read(source)
    heads = Heads(config.num_heads, config.num_head_channels, config.use_new_attention_order)
    unet = network(state, config.image_size, heads)
    learnt = unet.config["out_channels"] == 2 * unet.config["in_channels"]
    law = config.noise_schedule, config.diffusion_steps, config.rescale_timesteps
    pipeline = DDPMPipeline(unet=unet, scheduler=scheduler(*law, learnt))
    staging = out.with_name(f".{out.name}.staging")
    if staging.exists():  # of a stopped run
        remove_tree(staging)
    pipeline.save_pretrained(staging)
    check_base(staging)
    staging.rename(out)
    count = sum(weight.numel() for weight in unet.parameters())
    print(f"{out}: {count:,} weights{', variances learnt' if learnt else ''}")


def check_files(source: Path, out: Path) -> None:
    if not source.is_file():
        raise UserError(f"there is no file {source}: check the path.")
    if out.exists():
        raise UserError(f"{out} is there already: name another --out.")
    check_writable(out.parent)
    check_room(out.parent, 2 * source.stat().st_size)


def read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_pickled(path)
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged: copy or download it again.") from error


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor convert-base")
