"""Nothing in; a tiny FLUX and a tiny SD 1.x in folders out, with a LoRA and a detector.

For measuring a step beside those of other trainers (`benchmarks.against_release`,
`benchmarks.against_trl`): every side opens the same files. Weights are random, of a gain near 1;
shapes keep the proportions of the real ones roughly: the decoder costs a fraction of the denoiser's
forward pass in FLUX and about one and a half guided passes in SD, the detector next to nothing. The
detector's map lies above the loss's threshold everywhere, so that every pixel pulls.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from safetensors.torch import save_file
from torch import nn

from benchmarks.full_shapes import fill
from core.seeds import generator
from detector.segformer import SegformerConfig, SegformerDetector, freeze
from miniature import text
from treat.lora import add_lora, lora_parameters, lora_state
from treat.lora_files.names import METADATA, TRANSFORMER, UNET, WEIGHTS

PROMPT = "a left hand, dark skin, over snow"
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
"""What both peers teach; neither lets one choose."""
TEXT_TOKENS = 256
"""Of T5, as the release has it."""
DETECTOR_SIDE = 512
CONTRAST = 0.1
"""Deviation of the decoder's output about grey, of 1: a clamp to [-1, 1] changes no pixel."""
FLUX = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "guidance_embeds": False,
    "axes_dims_rope": (8, 28, 28),
}
FLUX_VAE = {
    "latent_channels": 16,
    "block_out_channels": (4, 8, 16, 16),
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
UNET_SHAPE = {
    "sample_size": 32,
    "block_out_channels": (32, 64, 128, 128),
    "layers_per_block": 2,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
SD_VAE = {
    "latent_channels": 4,
    "block_out_channels": (12, 24, 48, 48),
    "scaling_factor": 0.18215,
}
DDIM = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
SEGFORMER = {
    "num_labels": 1,
    "hidden_sizes": [16, 32, 40, 64],
    "depths": [1, 1, 1, 1],
    "decoder_hidden_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}


def save_flux(folder: Path) -> Path:
    """A whole `FluxPipeline`."""
    clip, t5 = text.make_clip_tokenizer(), text.make_t5_tokenizer()
    t5.model_max_length = TEXT_TOKENS
    network = FluxTransformer2DModel(**FLUX)
    fill(network, torch.device("cpu"), 0)
    readers = _seeded(lambda: (text.make_clip(), text.make_t5(t5)))
    FluxPipeline(
        transformer=network,
        vae=_vae(1024 // 8, FLUX_VAE),
        text_encoder=readers[0],
        text_encoder_2=readers[1],
        tokenizer=clip,
        tokenizer_2=t5,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    ).save_pretrained(folder)
    return folder


def save_sd(folder: Path) -> Path:
    """A whole `StableDiffusionPipeline` without a safety checker."""
    network = UNet2DConditionModel(**UNET_SHAPE)
    fill(network, torch.device("cpu"), 0)
    parts: dict[str, Any] = {
        "unet": network,
        "vae": _vae(256 // 8, SD_VAE),
        "text_encoder": _seeded(text.make_clip),
        "tokenizer": text.make_clip_tokenizer(),
        "scheduler": DDIMScheduler(**DDIM),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    return folder


def save_lora(folder: Path, family: str, rank: int) -> Path:
    """Adapters that are not nothing: were B zero, A would have no gradient."""
    kind: Any = FluxTransformer2DModel if family == "flux" else UNet2DConditionModel
    network = kind(**(FLUX if family == "flux" else UNET_SHAPE))
    add_lora(network, rank, TARGETS, 0)
    for place, weight in enumerate(lora_parameters(network)[1::2]):
        weight.data.copy_(torch.randn(weight.shape, generator=generator(0, place)) * 0.02)
    before = TRANSFORMER if family == "flux" else UNET
    settings = {"r": rank, "lora_alpha": rank, "target_modules": TARGETS}
    settings = {before + name: value for name, value in settings.items()}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {before + name: tensor for name, tensor in lora_state(network).items()}
    metadata = {"format": "pt", METADATA: json.dumps(settings)}
    save_file(tensors, folder / WEIGHTS, metadata=metadata)
    return folder


def save_detector(folder: Path) -> Path:
    """transformers' own folder of a SegFormer, and its weights as the release reads them."""

    def made() -> transformers.SegformerForSemanticSegmentation:
        network = transformers.SegformerForSemanticSegmentation(
            transformers.SegformerConfig(**SEGFORMER)  # pyright: ignore[reportCallIssue]
        )
        last = network.decode_head.classifier
        nn.init.normal_(last.weight, std=0.3)
        nn.init.constant_(last.bias, -1.5)  # pyright: ignore[reportArgumentType]
        return network

    network = _seeded(made)
    network.save_pretrained(folder)
    transformers.SegformerImageProcessor().save_pretrained(folder)
    torch.save(network.state_dict(), folder / "weights.bin")
    return folder


def open_detector(folder: Path) -> SegformerDetector:
    """The same weights behind this project's contract; frozen."""
    described = {"variant": "mit_b0", "input_size": DETECTOR_SIDE}
    detector = SegformerDetector(SegformerConfig.model_validate(described))
    network = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    detector.network = network.to(memory_format=torch.channels_last)  # pyright: ignore
    return freeze(detector)


def _vae(cells: int, shape: dict[str, Any]) -> AutoencoderKL:
    """Its images stay within their range."""
    levels = len(shape["block_out_channels"])
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    vae = AutoencoderKL(layers_per_block=2, norm_num_groups=4, **blocks, **shape)
    fill(vae, torch.device("cpu"), 1)
    z = torch.randn(1, shape["latent_channels"], cells, cells, generator=generator(0))
    with torch.no_grad():
        image: Any = vae.decode(z / shape["scaling_factor"], return_dict=False)[0]
        vae.decoder.conv_out.weight.mul_(CONTRAST / image.std())
    return vae


def _seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()
