"""FLUX's modules by the original code's names in; diffusers' modules that they hold out.

The original network keeps q, k and v in one weight (a single block its MLP as well), so one LoRA
there is several in diffusers: side by side in B's rows.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

HELD = {
    "double_blocks": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "img_attn.proj": ("attn.to_out.0",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "img_mod.lin": ("norm1.linear",),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "txt_attn.proj": ("attn.to_add_out",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
        "txt_mod.lin": ("norm1_context.linear",),
    },
    "single_blocks": {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
        "modulation.lin": ("norm.linear",),
    },
}
"""Kind of block -> module of the original code -> diffusers' modules that it holds, in order."""
BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}
TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
SWAPPED = "norm_out.linear"
"""Shift and scale, B's two halves, stand the other way round in diffusers."""
MLP_RATIO = 4


class Fused(NamedTuple):
    """One module of the original code."""

    place: str
    """Without prefix, with underscores: `double_blocks_0_img_attn_qkv`."""
    holds: tuple[str, ...]
    """diffusers' modules, in the order of their rows."""


def fused(place: str) -> Fused | None:
    """By its name with kohya's or ComfyUI's prefix; None where FLUX has no such module."""
    rest = re.sub(r"^(lora_unet_|diffusion_model\.)", "", place).replace(".", "_")
    for name, module in TOP.items():
        if rest == name.replace(".", "_"):
            return Fused(rest, (module,))
    found = re.fullmatch(r"(double_blocks|single_blocks)_(\d+)_(\w+)", rest)
    for name, inner in HELD[found[1]].items() if found else ():
        if found and found[3] == name.replace(".", "_"):
            block = f"{BLOCKS[found[1]]}.{found[2]}"
            return Fused(rest, tuple(f"{block}.{one}" for one in inner))
    return None


def holder(module: str) -> Fused | None:
    """The module of the original code that holds one of diffusers'."""
    for name, one in TOP.items():
        if module == one:
            return Fused(name.replace(".", "_"), (one,))
    found = re.fullmatch(r"((?:single_)?transformer_blocks)\.(\d+)\.(.+)", module)
    kinds = {there: here for here, there in BLOCKS.items()}
    for name, inner in HELD[kinds[found[1]]].items() if found else ():
        if found and found[3] in inner:
            block = f"{found[1]}.{found[2]}"
            place = f"{kinds[found[1]]}_{found[2]}_{name.replace('.', '_')}"
            return Fused(place, tuple(f"{block}.{one}" for one in inner))
    return None


def underscored(module: str) -> str | None:
    """One of diffusers' modules from its name with underscores (OneTrainer's)."""
    plain = {one.replace(".", "_"): one for one in TOP.values()}
    if module in plain:
        return plain[module]
    found = re.fullmatch(r"((?:single_)?transformer_blocks)_(\d+)_(.+)", module)
    for kind, block in BLOCKS.items() if found else ():
        for one in (inner for held in HELD[kind].values() for inner in held):
            if found and found[1] == block and found[3] == one.replace(".", "_"):
                return f"{block}.{found[2]}.{one}"
    return None


def rows(module: Fused, hidden: int) -> list[int]:
    """Rows of B that each held module has, where there are several."""
    return [hidden * (MLP_RATIO if one.endswith("proj_mlp") else 1) for one in module.holds]


def swapped(b: Tensor) -> Tensor:
    first, second = b.chunk(2)
    return torch.cat([second, first])


Pair = tuple[Tensor, Tensor]
"""A and B."""


def joined(pairs: Sequence[Pair | None], sides: Sequence[int]) -> Pair:
    """One pair that holds several exactly; None is a module that is left as it was.

    Equal A's are kept once. Otherwise they stand one above the other and B is block-diagonal: the
    rank is the sum of theirs.
    """
    there = [pair for pair in pairs if pair is not None]
    if len(there) == len(pairs) and all(same(there[0][0], a) for a, _ in there):
        return there[0][0], torch.cat([b for _, b in there])
    rank = sum(len(a) for a, _ in there)
    b_all = there[0][1].new_zeros(sum(sides), rank)
    row = column = 0
    for pair, side in zip(pairs, sides, strict=True):
        if pair is not None:
            b_all[row : row + side, column : column + len(pair[0])] = pair[1]
            column += len(pair[0])
        row += side
    return torch.cat([a for a, _ in there]), b_all


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, but for the sign of zero; eight-bit floats are not compared as they are."""
    return one.dtype == other.dtype and torch.equal(one.float(), other.float())


def parted(pair: Pair, sides: Sequence[int], ranks: Sequence[int] | None) -> list[Pair | None]:
    """What `joined` put together; `ranks` are those that it had, none where one A serves all."""
    a, b = pair
    if ranks is None:  # as sd-scripts writes them
        ranks = [len(a) // len(sides)] * len(sides)
    blocks = b.split(list(sides))
    if len(ranks) != len(sides) or sum(ranks) != len(a) or not _diagonal(blocks, ranks):
        return [(a.clone(), block.contiguous()) for block in blocks]
    pairs: list[Pair | None] = []
    column = 0
    for block, rank in zip(blocks, ranks, strict=True):
        inner = block[:, column : column + rank].contiguous()
        pairs.append((a[column : column + rank].contiguous(), inner) if rank else None)
        column += rank
    return pairs


def _diagonal(blocks: Sequence[Tensor], ranks: Sequence[int]) -> bool:
    """Whether every block of rows is zero outside the columns that are its own."""
    column = 0
    for block, rank in zip(blocks, ranks, strict=True):
        if block[:, :column].float().any() or block[:, column + rank :].float().any():
            return False
        column += rank
    return True
