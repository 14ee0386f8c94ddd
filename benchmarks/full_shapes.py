"""A base's name in, the base at its true size out, of random weights and without text encoders.

Shapes are those of the released configs; nothing is read or fetched. `TINY` has the same parts in
at most 0.4 million weights. Weights are made on the device itself: a CPU would need minutes for
them.

Legend: n text tokens, d their width, e width of the summary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn

from base_models import kolors, sdxl
from base_models.flux import Flux
from base_models.unet import EMPTY, UNetModel
from core.contracts import Conditioning

EULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
KOLORS_EULER = {**EULER, "beta_end": 0.014, "num_train_timesteps": 1100}


@dataclass(frozen=True)
class Shape:
    """One base: its configs, and what its text encoders would have said."""

    family: str
    network: dict[str, Any]
    vae: dict[str, Any]
    text: tuple[int, int]
    """n and d."""
    pooled: int
    """e."""
    side: int = 1024
    """Pixels."""
    detector: dict[str, Any] = field(default_factory=dict)


def _vae(channels: int, **options: Any) -> dict[str, Any]:
    widths = (128, 256, 512, 512)
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 2,
        "latent_channels": channels,
        "sample_size": 1024,
        **options,
    }


def _unet(pooled: int, **options: Any) -> dict[str, Any]:
    return {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + pooled,
        **options,
    }


B5 = {"variant": "mit_b5", "input_size": 512}
FLUX_VAE = _vae(
    16,
    scaling_factor=0.3611,
    shift_factor=0.1159,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
SDXL_VAE = _vae(4, scaling_factor=0.13025)
LISTENING = {"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"}
FULL = {
    # The transformer's own defaults are FLUX.1-schnell.
    "flux": Shape("flux", {}, FLUX_VAE, (256, 4096), 768, detector=B5),
    "short flux": Shape(
        "flux",
        {"num_layers": 4, "num_single_layers": 8},
        FLUX_VAE,
        (256, 4096),
        768,
        detector=B5,
    ),
    "sdxl": Shape("sdxl", _unet(1280), SDXL_VAE, (77, 2048), 1280, detector=B5),
    "kolors": Shape("kolors", _unet(4096, **LISTENING), SDXL_VAE, (256, 4096), 4096, detector=B5),
}

NANO = {"variant": "nano", "input_size": 16}
TINY_VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
}
TINY_FLUX = Shape(
    "flux",
    {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (8, 8, 16),
    },
    {**TINY_VAE, "shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False},
    (8, 32),
    16,
    side=32,
    detector=NANO,
)
TINY_UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
    "norm_num_groups": 4,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
TINY_LISTENING = {**LISTENING, "encoder_hid_dim": 24}
TINY = {
    "flux": TINY_FLUX,
    "short flux": TINY_FLUX,
    "sdxl": Shape("sdxl", _unet(16, **TINY_UNET), TINY_VAE, (7, 32), 16, side=32, detector=NANO),
    "kolors": Shape(
        "kolors",
        _unet(16, **TINY_UNET, **TINY_LISTENING),
        TINY_VAE,
        (7, 24),
        16,
        side=32,
        detector=NANO,
    ),
}


@final
class Silent:
    """In the place of text encoders (`base_models.unet.Text`)."""

    empty_is_zero = False

    def __init__(self) -> None:
        self.encoders: list[Any] = []

    def read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        raise RuntimeError("There are no text encoders here.")


def outline(shape: Shape, dtype: torch.dtype) -> Any:
    """The `DiffusionModel` on the meta device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            kind: Any = FluxTransformer2DModel if shape.family == "flux" else UNet2DConditionModel
            network, vae = kind(**shape.network), AutoencoderKL(**shape.vae)
    finally:
        torch.set_default_dtype(before)
    if shape.family == "flux":
        text = {
            "text_encoder": nn.Identity(),
            "text_encoder_2": nn.Identity(),
            "tokenizer_2": SimpleNamespace(model_max_length=shape.text[0]),
        }
        model: Any = Flux(network, vae, FlowMatchEulerDiscreteScheduler(shift=1.0), text)
    else:
        options = EULER if shape.family == "sdxl" else KOLORS_EULER
        parts = SimpleNamespace(unet=network, vae=vae, scheduler=EulerDiscreteScheduler(**options))
        guidance = sdxl.GUIDANCE if shape.family == "sdxl" else kolors.GUIDANCE
        model = UNetModel(shape.family, parts, Silent(), guidance=guidance)
    model.drop_text_encoders()
    return model


def fill(module: nn.Module, device: torch.device, seed: int) -> None:
    """Weights for a module from the meta device, drawn there, of a gain near 1 at any width.

    Matrices: deviation 1 / sqrt(fan in); norms: 1; biases: 0. So nothing grows without bound, and
    no projection is zero that would hold the gradient back.
    """
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.data.fill_(1.0 if name.endswith("weight") else 0.0)


def conditioning(shape: Shape, dtype: torch.dtype) -> Conditioning:
    """What text encoders would have said to one prompt, and to the empty one; on the CPU."""
    generator = torch.Generator().manual_seed(1)

    def said(*size: int) -> Tensor:
        return torch.randn(1, *size, generator=generator).to(dtype)

    names = ("",) if shape.family == "flux" else ("", EMPTY)
    return {
        before + name: said(*size)
        for before in names
        for name, size in (("text", shape.text), ("pooled", (shape.pooled,)))
    }
