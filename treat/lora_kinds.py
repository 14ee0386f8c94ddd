"""What readers of LoRA files want to be told, base by base; and kohya's names for the UNets."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from base_models.load import locate, read_parts, repository
from core.errors import UserError
from core.storage import read_json
from treat.adapter import Adapter
from treat.lora_files.names import TRANSFORMER, UNET
from treat.names import Architecture


class Kind(NamedTuple):
    """One kind of base, as its readers call it."""

    prefix: str
    """Before the names of the network's modules."""
    pipeline: str
    modelspec: str | None
    """`modelspec.architecture`, as sd-scripts writes it; it knows no Kolors."""
    kohya_version: str | None
    """`ss_base_model_version`, likewise; it says more of an SD 3 than a run knows."""
    tag: str


KINDS: dict[str, Kind] = {
    "schnell": Kind(TRANSFORMER, "FluxPipeline", "flux-1-schnell/lora", "flux1", "flux"),
    "dev": Kind(TRANSFORMER, "FluxPipeline", "flux-1-dev/lora", "flux1", "flux"),
    "sdxl": Kind(UNET, "StableDiffusionXLPipeline", "stable-diffusion-xl-v1-base/lora",
                 "sdxl_base_v1-0", "stable-diffusion-xl"),
    "sd1": Kind(UNET, "StableDiffusionPipeline", "stable-diffusion-v1/lora", "sd_v1",
                "stable-diffusion"),
    "sd2": Kind(UNET, "StableDiffusionPipeline", "stable-diffusion-v2-512/lora", "sd_v2",
                "stable-diffusion"),
    "sd2-768": Kind(UNET, "StableDiffusionPipeline", "stable-diffusion-v2-768-v/lora", "sd_v2_v",
                    "stable-diffusion"),
    "sd3": Kind(TRANSFORMER, "StableDiffusion3Pipeline", "stable-diffusion-3/lora", None,
                "stable-diffusion-3"),
    "kolors": Kind(UNET, "KolorsPipeline", None, None, "kolors"),
}  # fmt: skip
FLUX_BLOCKS = "single_transformer_blocks."
"""No other family has them, and no FLUX adapter does without."""
TRANSFORMER_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
UNET_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")
SD2_WIDTH = 1024
"""Of the text that SD 2 reads; SD 1 reads 768."""
HALVES = {"lora_A": "lora_down", "lora_B": "lora_up"}
"""peft's names -> kohya's."""


def kind_of(adapter: Adapter, asked: Architecture | None) -> Kind:
    """The kind that was asked for, or that of the run's base; `UserError` where it does not fit."""
    names = tuple(adapter.tensors)
    prefix = TRANSFORMER if all(name.startswith(TRANSFORMER_BLOCKS) for name in names) else UNET
    strange = [name for name in names if not name.startswith(TRANSFORMER_BLOCKS + UNET_BLOCKS)]
    if strange:
        raise UserError(
            f"'{strange[0]}' belongs to neither a FLUX or SD 3 transformer nor a UNet, and only "
            "adapters of these can be exported: give another --run."
        )
    chosen = asked or guessed(adapter)
    if chosen is None:
        raise UserError(f"the base of this adapter is not at hand: say {options(prefix)}.")
    if KINDS[chosen].prefix != prefix:
        raise UserError(f"this adapter is of no {chosen} ('{names[0]}'): say {options(prefix)}.")
    return KINDS[chosen]


def options(prefix: str) -> str:
    known = ", ".join(name for name, kind in KINDS.items() if kind.prefix == prefix)
    return f"--architecture ({known})"


def guessed(adapter: Adapter) -> Architecture | None:
    """By the configs of the run's base; where they cannot be had, FLUX's blocks and the base's
    name say schnell or dev."""
    try:
        family, folder, _ = read_parts(locate(str(adapter.run["base"]), weights=False))
        if family == "FluxPipeline":
            said = read_json(folder / "transformer/config.json")
            return "dev" if said.get("guidance_embeds") else "schnell"
        if family == "StableDiffusion3Pipeline":
            return "sd3"
        if family == "StableDiffusionPipeline":
            if read_json(folder / "unet/config.json").get("cross_attention_dim") != SD2_WIDTH:
                return "sd1"
            schedule = read_json(folder / "scheduler/scheduler_config.json")
            return "sd2-768" if schedule.get("prediction_type") == "v_prediction" else "sd2"
    except (KeyError, UserError):
        flux = any(name.startswith(FLUX_BLOCKS) for name in adapter.tensors)
        dev = "dev" in Path(repository(str(adapter.run.get("base")))[0]).name.lower()
        return ("dev" if dev else "schnell") if flux else None
    return "sdxl" if family == "StableDiffusionXLPipeline" else "kolors"


def kohya_named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet tensors by kohya's names, with the alpha (= rank) that its readers ask for.

    `down_blocks.1.attn.to_q.lora_A.weight` is `lora_unet_down_blocks_1_attn_to_q.lora_down.weight`.
    """
    named = {}
    for name, tensor in tensors.items():
        module, half, _ = name.rsplit(".", 2)
        place = "lora_unet_" + module.replace(".", "_")
        named[f"{place}.{HALVES[half]}.weight"] = tensor
        if half == "lora_A":
            alpha = torch.tensor(float(tensor.shape[0]))
            exact = alpha.to(tensor.dtype) == alpha  # bf16 holds every rank up to 256
            named[f"{place}.alpha"] = alpha.to(tensor.dtype) if exact else alpha
    return named
