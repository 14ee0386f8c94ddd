"""Small LoRA files of every naming, sound, for tests to plant faults in."""

import json
from pathlib import Path

import safetensors.torch
import torch

RANK, WIDTH = 4, 16
UNET = [
    f"{block}.attentions.0.transformer_blocks.0.{inner}"
    for block in ("down_blocks.1", "mid_block", "up_blocks.0")
    for inner in ("attn1.to_q", "attn1.to_out.0", "attn2.to_k", "ff.net.0.proj")
]
FLUX = [
    f"transformer_blocks.0.{inner}"
    for inner in ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2")
] + [
    f"single_transformer_blocks.0.{inner}"
    for inner in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "norm.linear")
]
SGM = [
    f"input_blocks_4_1_transformer_blocks_{i}_{inner}"
    for i in (0, 1)
    for inner in ("attn1_to_q", "attn2_to_v", "ff_net_0_proj", "ff_net_2")
]


def pair(index, out=WIDTH, wide=WIDTH, rank=RANK):
    draw = torch.Generator().manual_seed(index)
    return (
        torch.randn(rank, wide, generator=draw) * 0.1,
        torch.randn(out, rank, generator=draw) * 0.1,
    )


def named(modules, prefix, halves=("lora_A", "lora_B"), alpha=None, split="."):
    tensors = {}
    for index, module in enumerate(modules):
        out = WIDTH * (4 if module.endswith("proj_mlp") else 1)
        a, b = pair(index, out)
        place = prefix + module.replace(".", split)
        tensors |= {f"{place}.{halves[0]}.weight": a, f"{place}.{halves[1]}.weight": b}
        if alpha is not None:
            tensors[f"{place}.alpha"] = torch.tensor(alpha)
    return tensors


def fused(prefix, halves=("lora_down", "lora_up"), alpha=float(RANK)):
    tensors = {}
    for index, place in enumerate(("double_blocks.0.img_attn.qkv", "single_blocks.0.linear2")):
        a, b = pair(index, WIDTH * (3 if index == 0 else 1))
        name = prefix + (place if prefix.endswith(".") else place.replace(".", "_"))
        tensors |= {f"{name}.{halves[0]}.weight": a, f"{name}.{halves[1]}.weight": b}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


KOHYA = ("lora_down", "lora_up")


def settings(modules, prefix, **changes):
    """None among the changes takes a field out."""
    said = {"r": RANK, "lora_alpha": RANK, "target_modules": modules, "lora_dropout": 0.0}
    return {
        "lora_adapter_metadata": json.dumps(
            {prefix + n: v for n, v in (said | changes).items() if v is not None}
        )
    }


def sound(naming):
    """Tensors of a sound file by its naming."""
    match naming:
        case "peft-transformer":
            return named(FLUX, "transformer.")
        case "peft-unet":
            return named(UNET, "unet.")
        case "kohya-unet":
            return named(UNET, "lora_unet_", KOHYA, float(RANK), "_")
        case "kohya-sgm":
            return named(SGM, "lora_unet_", KOHYA, float(RANK))
        case "kohya-flux":
            return fused("lora_unet_")
        case "comfy-flux":
            return fused("diffusion_model.")
        case "down-transformer":
            return named(FLUX, "transformer.", KOHYA)
        case "onetrainer-flux":
            attention = [name for name in FLUX if ".attn." in name]
            return named(attention, "lora_transformer_", KOHYA, float(RANK), "_")
    raise KeyError(naming)


def old(pairs):
    """As diffusers wrote UNets before PEFT."""
    tensors = {}
    for module, (a, b) in pairs.items():
        block, _, inner = module.rpartition(".to_")
        if block:
            place = f"unet.{block}.processor.to_{inner.split('.')[0]}_lora"
        else:
            place = f"unet.{module}.lora"
        tensors |= {f"{place}.down.weight": a, f"{place}.up.weight": b}
    return tensors


def save(path: Path, tensors, metadata=None) -> Path:
    tensors = {name: one.contiguous() for name, one in tensors.items()}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"} | (metadata or {}))
    return path


def raw(header, data=b"") -> bytes:
    """A file from a header that need not be sound."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def delta(a, b, alpha=None):
    scale = 1.0 if alpha is None else float(alpha) / len(a)
    return (b.double().flatten(1) @ a.double().flatten(1)) * scale
