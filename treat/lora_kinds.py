"""What readers of LoRA files want to be told, base by base; and kohya's names for the UNets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from base_models.load import check_base
from core.errors import UserError
from treat.adapter import TRANSFORMER, UNET, Adapter

Architecture = Literal["schnell", "dev", "sdxl", "sd1", "sd2", "kolors"]


class Kind(NamedTuple):
    """One kind of base, as its readers call it."""

    prefix: str
    """Before the names of the network's modules."""
    pipeline: str
    modelspec: str
    """`modelspec.architecture`."""
    kohya_version: str
    """`ss_base_model_version`."""
    tag: str


KINDS: dict[str, Kind] = {
    "schnell": Kind(TRANSFORMER, "FluxPipeline", "flux-1-schnell/lora", "flux1", "flux"),
    "dev": Kind(TRANSFORMER, "FluxPipeline", "flux-1-dev/lora", "flux1", "flux"),
    "sdxl": Kind(UNET, "StableDiffusionXLPipeline", "stable-diffusion-xl-v1-base/lora",
                 "sdxl_base_v1-0", "stable-diffusion-xl"),
    "sd1": Kind(UNET, "StableDiffusionPipeline", "stable-diffusion-v1/lora", "sd_v1",
                "stable-diffusion"),
    "sd2": Kind(UNET, "StableDiffusionPipeline", "stable-diffusion-v2-768-v/lora", "sd_v2",
                "stable-diffusion"),
    "kolors": Kind(UNET, "KolorsPipeline", "kolors/lora", "kolors", "kolors"),
}  # fmt: skip
FLUX_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
UNET_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")
HALVES = {"lora_A": "lora_down", "lora_B": "lora_up"}
"""peft's names -> kohya's."""


def kind_of(adapter: Adapter, asked: Architecture | None) -> Kind:
    """The kind that was asked for, or that of the run's base; `UserError` where it does not fit."""
    names = tuple(adapter.tensors)
    prefix = TRANSFORMER if all(name.startswith(FLUX_BLOCKS) for name in names) else UNET
    strange = [name for name in names if not name.startswith(FLUX_BLOCKS + UNET_BLOCKS)]
    if strange:
        raise UserError(f"'{strange[0]}' is of no base that is known here: export its own LoRA.")
    chosen = asked or guessed(adapter, prefix)
    if chosen is None:
        known = ", ".join(name for name, kind in KINDS.items() if kind.prefix == prefix)
        raise UserError(f"the base of this adapter is not at hand: say --architecture ({known}).")
    if KINDS[chosen].prefix != prefix:
        raise UserError(f"this adapter is of no {chosen} ('{names[0]}'): see --architecture.")
    return KINDS[chosen]


def guessed(adapter: Adapter, prefix: str) -> Architecture | None:
    """By the run's base, if it is a folder that is there; of two FLUX, schnell."""
    if prefix == TRANSFORMER:
        return "schnell"
    base = Path(str(adapter.run.get("base", ""))).expanduser()
    if not (adapter.run.get("base") and base.exists()):
        return None
    pipelines: dict[str, Architecture] = {
        "StableDiffusionXLPipeline": "sdxl",
        "StableDiffusionPipeline": "sd1",
        "KolorsPipeline": "kolors",
    }
    return pipelines.get(check_base(base, weights=False))


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
            named[f"{place}.alpha"] = torch.tensor(float(tensor.shape[0]), dtype=tensor.dtype)
    return named
