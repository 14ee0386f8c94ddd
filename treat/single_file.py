"""An SDXL pipeline folder in; one file by the names of the original code out.

ComfyUI, Forge and the other interfaces call it a checkpoint. The names are those of Stability's
`generative-models`: a UNet of numbered blocks (`model.diffusion_model.`), the autoencoder
(`first_stage_model.`) and two text encoders (`conditioner.embedders.`), of which OpenCLIP's has
one matrix for q, k and v and its projection transposed. Every value and dtype is the folder's.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from base_models.load import check_safetensors
from core.errors import UserError
from core.storage import read_json
from treat.merge import synced, weight_files

FAMILY = "StableDiffusionXLPipeline"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPENCLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
PLACES = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
"""Where the original UNet has weights."""
NETWORK, ENCODER = "diffusion_pytorch_model.safetensors", "model.safetensors"
PARTS = {"unet": NETWORK, "vae": NETWORK, "text_encoder": ENCODER, "text_encoder_2": ENCODER}
"""The folders that are read, and the file of weights in each (or its index)."""
ENCODERS = ("text_encoder", "text_encoder_2")
Rules = tuple[tuple[str, str], ...]
"""Pattern -> replacement, applied one after the other."""

IN_RESNET: Rules = (
    (r"\bnorm1\.", "in_layers.0."),
    (r"\bconv1\.", "in_layers.2."),
    (r"\btime_emb_proj\.", "emb_layers.1."),
    (r"\bnorm2\.", "out_layers.0."),
    (r"\bconv2\.", "out_layers.3."),
    (r"\bconv_shortcut\.", "skip_connection."),
)
AROUND_UNET: Rules = (
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
)
IN_VAE: Rules = (
    (r"\bconv_norm_out\.", "norm_out."),
    (r"\bconv_shortcut\.", "nin_shortcut."),
    (r"\bdown_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"\bdown_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"\bmid_block\.resnets\.0\.", "mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", "mid.block_2."),
    (r"\bmid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\battn_1\.group_norm\.", "attn_1.norm."),
    (r"\battn_1\.(?:to_q|query)\.", "attn_1.q."),
    (r"\battn_1\.(?:to_k|key)\.", "attn_1.k."),
    (r"\battn_1\.(?:to_v|value)\.", "attn_1.v."),
    (r"\battn_1\.(?:to_out\.0|proj_attn)\.", "attn_1.proj_out."),
)
IN_OPENCLIP: Rules = (
    (r"^text_model\.", ""),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\blayer_norm([12])\.", r"ln_\1."),
    (r"\bmlp\.fc1\.", "mlp.c_fc."),
    (r"\bmlp\.fc2\.", "mlp.c_proj."),
    (r"\bself_attn\.([qkv])_proj\.(weight|bias)$", r"attn.in_proj_\2.\1"),
    (r"\bself_attn\.out_proj\.", "attn.out_proj."),
)
BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)$")
MIDDLE = re.compile(r"^mid_block\.(resnets|attentions)\.(\d+)\.(.+)$")
UP_IN_VAE = re.compile(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.(.+)$")
POSITIONS = "position_ids"
"""0, 1, 2 and so on: no weight, and OpenCLIP has no such name."""


# Writing


def check(folder: Path) -> None:
    """Raise `UserError` unless it is an SDXL's folder with every part; no weight is read."""
    family = read_json(folder / "model_index.json").get("_class_name")
    if family != FAMILY:
        raise UserError(
            f"{folder} holds a {family}, and only SDXL is written as a single file: other families "
            "have no such layout that is written here. Leave out --single-file."
        )
    for part, file in PARTS.items():
        weight_files(folder / part, file)
    widths = [read_json(folder / part / "config.json").get("hidden_size") for part in ENCODERS]
    if widths[0] == widths[1]:
        raise UserError(
            f"both text encoders of {folder} are {widths[0]} wide, and whoever reads a single file "
            "tells them apart by their widths: leave out --single-file, and use the folder."
        )
    config = read_json(folder / "unet/config.json")
    if not isinstance(config.get("layers_per_block"), int):
        raise UserError(
            f"{folder / 'unet'} has blocks of unequal lengths, which the original layout cannot "
            "number: leave out --single-file."
        )
    for file in weight_files(folder / "unet", NETWORK):
        for name in check_safetensors(folder / "unet" / file):
            unet_name(name, config)


def others_size(folder: Path) -> int:
    """Bytes of the parts beside the UNet."""
    files = [
        folder / part / name
        for part, file in PARTS.items()
        if part != "unet"
        for name in weight_files(folder / part, file)
    ]
    return sum(path.stat().st_size for path in files)


def write(folder: Path, name: str, metadata: Mapping[str, str]) -> None:
    """Write `folder / name`. Only the second encoder's q, k and v are copied in memory."""
    said = {"format": "pt", "modelspec.architecture": "stable-diffusion-xl-v1-base", **metadata}
    safetensors.torch.save_file(tensors(folder), folder / name, metadata=said)
    synced(folder / name)


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a pipeline's folder by its original name; views of the files where it can."""
    states = {part: read(folder / part, file) for part, file in PARTS.items()}
    levels = len(read_json(folder / "vae/config.json")["block_out_channels"])
    return {
        **original(states, read_json(folder / "unet/config.json"), levels),
        **markers(read_json(folder / "scheduler/scheduler_config.json")),
    }


def original(
    states: Mapping[str, Mapping[str, Tensor]], unet: Mapping[str, Any], levels: int
) -> dict[str, Tensor]:
    """The parts' tensors in one; `unet` is the UNet's config, `levels` are the autoencoder's."""
    return {
        **{UNET + unet_name(name, unet): one for name, one in states["unet"].items()},
        **{VAE + vae_name(name, levels): in_vae(name, one) for name, one in states["vae"].items()},
        **{CLIP + clip_name(name): one for name, one in states["text_encoder"].items()},
        **{OPENCLIP + name: one for name, one in openclip(states["text_encoder_2"]).items()},
    }


def read(folder: Path, file: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in weight_files(folder, file):
        state |= safetensors.torch.load_file(folder / name)
    return state


def markers(schedule: Mapping[str, Any]) -> dict[str, Tensor]:
    """Empty tensors by which readers know a network that predicts v; none for the usual one."""
    if schedule.get("prediction_type") != "v_prediction":
        return {}
    names = ["v_pred", *(["ztsnr"] if schedule.get("rescale_betas_zero_snr") else [])]
    return {name: torch.zeros(0) for name in names}


# Names


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """diffusers nests levels and layers; there, blocks are numbered, inwards and outwards.

    Raises `UserError` for a module that the original UNet does not have.
    """
    there = renamed(numbered(name, config), AROUND_UNET)
    if ".resnets." in name:
        there = renamed(there, IN_RESNET)
    if not there.startswith(PLACES):
        raise UserError(f"SDXL's original layout has no place for '{name}': drop --single-file.")
    return there


def numbered(name: str, config: Mapping[str, Any]) -> str:
    """Modules of the blocks by their numbers; any other name comes back."""
    layers = config["layers_per_block"]
    if found := MIDDLE.match(name):
        kind, index, rest = found.groups()
        return f"middle_block.{2 * int(index) + (kind == 'attentions')}.{rest}"
    if not (found := BLOCK.match(name)):
        return name
    way, level, kind, layer, rest = found.groups()
    first = int(level) * (layers + 1)
    if kind == "downsamplers":  # after the level's layers; input block 0 is conv_in
        return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":  # within the level's last block, behind what that holds
        attends = config["up_block_types"][int(level)].startswith("CrossAttn")
        return f"output_blocks.{first + layers}.{1 + attends}.{rest}"
    inner = {"resnets": 0, "attentions": 1}[kind]
    if way == "down":
        return f"input_blocks.{first + int(layer) + 1}.{inner}.{rest}"
    return f"output_blocks.{first + int(layer)}.{inner}.{rest}"


def vae_name(name: str, levels: int) -> str:
    """The decoder's levels are counted from the other end there."""
    if found := UP_IN_VAE.match(name):
        level, kind, rest = found.groups()
        inner = {"resnets": "block", "upsamplers.0": "upsample"}[kind]
        name = f"decoder.up.{levels - 1 - int(level)}.{inner}.{rest}"
    return renamed(name, IN_VAE)


def in_vae(name: str, tensor: Tensor) -> Tensor:
    """The attention's matrices are 1 x 1 convolutions there."""
    matrix = ".attentions." in name and tensor.ndim == 2
    return tensor[..., None, None] if matrix else tensor


def clip_name(name: str) -> str:
    """transformers 5 leaves out `text_model.`, which every reader of such files expects."""
    return "text_model." + name.removeprefix("text_model.")


def openclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The second text encoder by OpenCLIP's names: q, k and v in one, the projection transposed."""
    named = {renamed(n, IN_OPENCLIP): one for n, one in state.items() if POSITIONS not in n}
    fused = {}
    for name, tensor in named.items():
        if name == "text_projection":
            fused[name] = tensor.T.contiguous()
        elif ".in_proj_" in name:
            place = name.rpartition(".")[0]
            fused[place] = torch.cat([named[f"{place}.{part}"] for part in "qkv"])
        else:
            fused[name] = tensor
    return fused


def renamed(name: str, rules: Rules) -> str:
    for pattern, there in rules:
        name = re.sub(pattern, there, name)
    return name
