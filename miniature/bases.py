"""The miniature's bases at rest: a base's name in, a pipeline folder that diffusers opens out.

miniature/bases/newest/   transformer, scheduler, tokenizers, and the shared vae and encoders
miniature/bases/middle/   a transformer of its own; everything else are links into newest/
miniature/bases/sdxl/     a UNet, scheduler and readers; the vae's weights are a link into newest/
miniature/bases/kolors/   the same
miniature/bases/ddpm/     a UNet of pixels and its scheduler
miniature/bases/ldm/      a UNet of latents, its scheduler; the vqvae's weights are such a link
"""

import os
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, T5EncoderModel

from core.errors import UserError
from miniature.flow import make_scheduler
from miniature.text import make_clip_tokenizer, make_t5_tokenizer

GRADES = ("newest", "middle", "oldest")
"""Of the FLUX base."""
BASES = (*GRADES, "sdxl", "kolors", "ddpm", "ldm")
"""Names of the folders; the last two read no prompt."""
SHIPPED = Path(__file__).parent / "bases"
DETECTORS = Path(__file__).parent / "detectors"
"""`first` and `second`, which share no image (`benchmarks.starters`); `sdxl` and `kolors`
went on from an earlier `first` with these bases' images."""
SHARED = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


def base_folder(base: str) -> Path:
    """The folder of a shipped base by name, or of any pipeline by path."""
    folder = SHIPPED / base if base in BASES else Path(base)
    if not is_pipeline(folder):
        there = [name for name in BASES if is_pipeline(SHIPPED / name)]
        raise UserError(
            f"{base} is no base model: name one of {', '.join(there)}, or a pipeline folder; "
            "`diffdoctor miniature build` makes them."
        )
    return folder


def autoencoder_folder(folder: Path) -> Path:
    """Where a pipeline keeps it: LDM's calls it `vqvae`, whatever it is."""
    return folder / ("vqvae" if (folder / "vqvae").is_dir() else "vae")


def is_pipeline(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def save_newest(
    folder: Path,
    network: FluxTransformer2DModel,
    vae: AutoencoderKL,
    clip: CLIPTextModel,
    t5: T5EncoderModel,
) -> None:
    """Write a whole pipeline: the transformer in fp16 (half the bytes), all else in fp32."""
    pipeline = FluxPipeline(
        scheduler=make_scheduler(),
        vae=vae,
        text_encoder=clip,
        tokenizer=make_clip_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=make_t5_tokenizer(),
        transformer=network,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    halve(folder / "transformer")


def save_older(folder: Path, network: FluxTransformer2DModel, newest: Path) -> None:
    """Write an older grade beside the newest, sharing everything but the transformer."""
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder / "transformer", safe_serialization=True)
    halve(folder / "transformer")
    (folder / "model_index.json").write_bytes((newest / "model_index.json").read_bytes())
    for name in SHARED:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(Path(os.path.relpath(newest, folder)) / name, True)


def halve(folder: Path) -> None:
    """Rewrite a saved network's weights in fp16."""
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = {name: w.to(torch.float16) for name, w in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
