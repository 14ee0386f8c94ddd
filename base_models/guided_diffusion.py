"""A state dict of OpenAI's guided-diffusion or improved-diffusion in; a `UNet2DModel` out.

Their UNet (Nichol and Dhariwal 2021, arXiv 2102.09672; Dhariwal and Nichol 2021, arXiv 2105.05233)
lies in lists of numbered blocks; what a block is, its tensors say. What no tensor says is asked
for: heads and their order in `qkv`. The flags named in refusals are those of their scripts.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from core.errors import UserError

GROUPS = 32
"""Of every group norm."""
LEVELS = 1000
"""Times that a rescaled network knows, whatever it was trained on."""
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.")


class Heads(NamedTuple):
    """Of the attention, as `--num_heads` or `--num_head_channels` say it, and which comes first."""

    number: int | None = None
    channels: int | None = None
    new_order: bool = False
    """qkv holds all queries, then keys, then values, and not each head's own three."""


class Shape(NamedTuple):
    """What the tensors say."""

    channels: list[int]
    """Of each level, from the finest."""
    attended: list[bool]
    """Levels whose residual blocks are followed by attention."""
    residuals: int
    """Blocks of a level on the way down; one more on the way up."""
    resampled: bool
    """Residual blocks halve and double (`--resblock_updown`), not convolutions."""
    shifted: bool
    """`--use_scale_shift_norm`."""


def network(state: Mapping[str, Tensor], size: int, heads: Heads) -> UNet2DModel:
    """The same function of x_t and t; `UserError` for what `UNet2DModel` cannot be."""
    check_known(state)
    shape = read_shape(state)
    config = network_config(state, shape, size, heads)
    found = {name: tensor.float() for name, tensor in renamed(state, shape, heads, config)}
    made = UNet2DModel(**config)
    wanted = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    if wanted != {name: tuple(tensor.shape) for name, tensor in found.items()}:
        odd = min(set(wanted) ^ set(found), default="a shape")
        raise UserError(f"this is no UNet of guided-diffusion that is known here (see {odd!r}).")
    made.load_state_dict(found)
    return made.eval()


def check_known(state: Mapping[str, Tensor]) -> None:
    """Raise `UserError` for another layout, and for flags that `UNet2DModel` has no place for."""
    if not {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= set(state):
        raise UserError(
            "this file holds no UNet of guided-diffusion or improved-diffusion: name the file of "
            "its weights, such as ema_0.9999_500000.pt."
        )
    if "label_emb.weight" in state:
        raise UserError(
            "this network asks for a class label (--class_cond), which is not supported here: "
            "take an unconditional one."
        )
    taken = state["input_blocks.0.0.weight"]
    if taken.ndim != 4:
        raise UserError("this network is not of images (--dims): take one of two dimensions.")
    if taken.shape[1] not in (state["out.2.weight"].shape[0], state["out.2.weight"].shape[0] // 2):
        raise UserError("this network enlarges images (super-resolution), and draws none.")
    if taken.shape[0] != state["time_embed.0.weight"].shape[1]:
        raise UserError(
            "the first level has other channels than the embedding of time (--channel_mult that "
            "does not begin with 1), which UNet2DModel cannot have."
        )


def read_shape(state: Mapping[str, Tensor]) -> Shape:
    """Levels are told apart where the way up doubles the sides, which the names show."""
    down, up = blocks(state, "input_blocks"), blocks(state, "output_blocks")
    doubling = [k for k, parts in enumerate(up) if parts and last_part(parts) in ("conv", "again")]
    residuals = doubling[0] if doubling else len(up) - 1
    levels = len(doubling) + 1
    bare = not all(down[1:])  # the first is a convolution alone
    if bare or residuals < 1 or len(up) != levels * (residuals + 1):
        raise UserError(
            "the levels of this network cannot be told apart: one that resamples without weights "
            "(--conv_resample False) is not supported."
        )
    first_of = [k * (residuals + 1) for k in range(levels)]
    channels = [state[f"output_blocks.{k}.0.out_layers.3.weight"].shape[0] for k in first_of]
    first = state["input_blocks.1.0.in_layers.2.weight"].shape[0]
    return Shape(
        channels[::-1],
        ["qkv" in up[k].values() for k in first_of][::-1],
        residuals,
        bool(doubling) and last_part(up[doubling[0]]) == "again",
        state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * first,
    )


def blocks(state: Mapping[str, Tensor], side: str) -> list[dict[int, str]]:
    """Of each block its parts by number: `in_layers`, `qkv`, `conv`, `op`, or the bare `weight`.

    A second residual block in one place is `again`.
    """
    found: dict[int, dict[int, str]] = {}
    for name in state:
        if (match := _BLOCK.match(name)) and match[1] == side:
            part, kind = name[match.end() :].split(".")[:2]
            known = found.setdefault(int(match[2]), {})
            if kind in ("in_layers", "qkv", "conv", "op"):
                known[int(part)] = "again" if kind == "in_layers" and part != "0" else kind
    return [found.get(k, {}) for k in range(max(found, default=-1) + 1)]


def last_part(parts: Mapping[int, str]) -> str:
    return parts[max(parts)]


def network_config(
    state: Mapping[str, Tensor], shape: Shape, size: int, heads: Heads
) -> dict[str, Any]:
    halving = "ResnetDownsampleBlock2D" if shape.resampled else "DownBlock2D"
    doubling = "ResnetUpsampleBlock2D" if shape.resampled else "UpBlock2D"
    down = ["AttnDownBlock2D" if attended else halving for attended in shape.attended]
    up = ["AttnUpBlock2D" if attended else doubling for attended in shape.attended[::-1]]
    how = "resnet" if shape.resampled else "conv"
    return {
        "sample_size": size,
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": state["out.2.weight"].shape[0],
        "block_out_channels": shape.channels,
        "layers_per_block": shape.residuals,
        "down_block_types": down,
        "up_block_types": up,
        "downsample_type": how,
        "upsample_type": how,
        "attention_head_dim": head_width(shape, heads),
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if shape.shifted else "default",
    }


def head_width(shape: Shape, heads: Heads) -> int:
    """Channels of a head, the same everywhere, as `UNet2DModel` has it."""
    attended = {c for c, attention in zip(shape.channels, shape.attended, strict=True) if attention}
    attended.add(shape.channels[-1])  # the middle
    if (heads.number is None) == (heads.channels is None):
        raise UserError(
            "no tensor says how many heads the attention has: give one of --num-heads and "
            "--num-head-channels, as the network was trained (the scripts' own default is 4 heads)."
        )
    if heads.number is not None and len(attended) > 1:
        raise UserError(
            f"{heads.number} heads (--num_heads) of {' and '.join(map(str, sorted(attended)))} "
            "channels have no width in common, which UNet2DModel asks for: it can be a network "
            "of --num_head_channels."
        )
    width = heads.channels or min(attended) // (heads.number or 1)
    wrong = [c for c in sorted(attended) if c % width or heads.number and c % heads.number]
    if wrong:
        raise UserError(f"{wrong[0]} channels do not divide into such heads: check the number.")
    return width


def renamed(
    state: Mapping[str, Tensor], shape: Shape, heads: Heads, config: Mapping[str, Any]
) -> list[tuple[str, Tensor]]:
    """Every tensor under diffusers' name; what has none keeps its own, and is missed later."""
    places = {**OUTSIDE, **placed(state, shape)}
    prefixes = sorted(places, key=len, reverse=True)
    found = []
    for name, tensor in state.items():
        own = next((one for one in prefixes if name.startswith(f"{one}.")), None)
        new = name if own is None else places[own] + name[len(own) :]
        if ".qkv." in new:
            parts = split_heads(tensor, config["attention_head_dim"], heads.new_order)
            found += [(new.replace(".qkv.", f".to_{q}."), part) for q, part in parts.items()]
            continue
        inner = [(f".{a}.", f".{b}.") for a, b in RESIDUAL.items()]
        for old, plain in [*inner, (".norm.", ".group_norm."), (".proj_out.", ".to_out.0.")]:
            new = new.replace(old, plain)
        flat = tensor.flatten(1) if ".to_out.0.weight" in new else tensor
        found.append((new, flat))
    return found


def placed(state: Mapping[str, Tensor], shape: Shape) -> dict[str, str]:
    """Their blocks' parts -> ours."""
    n, places = shape.residuals, {}
    for k, parts in enumerate(blocks(state, "input_blocks")):
        level, at = divmod(k - 1, n + 1)
        for part in parts:
            where = f"resnets.{at}" if part == 0 else f"attentions.{at}"
            if at == n:  # between two levels
                where = "downsamplers.0" + ("" if shape.resampled else ".conv")
            theirs = f"input_blocks.{k}.{part}" + (".op" if parts[part] == "op" else "")
            places[theirs] = f"down_blocks.{level}.{where}"
    for k, parts in enumerate(blocks(state, "output_blocks")):
        level, at = divmod(k, n + 1)
        for part, kind in parts.items():
            theirs = f"output_blocks.{k}.{part}" + (".conv" if kind == "conv" else "")
            where = {"in_layers": f"resnets.{at}", "qkv": f"attentions.{at}"}.get(kind)
            where = where or "upsamplers.0" + (".conv" if kind == "conv" else "")
            places[theirs] = f"up_blocks.{level}.{where}"
    middle = {0: "resnets.0", 1: "attentions.0", 2: "resnets.1"}
    return places | {f"middle_block.{i}": f"mid_block.{where}" for i, where in middle.items()}


def split_heads(qkv: Tensor, width: int, new_order: bool) -> dict[str, Tensor]:
    """Rows of q, k and v, heads one after the other; of a weight (3 c, c, 1) or a bias (3 c)."""
    rows = qkv.flatten(1) if qkv.ndim > 1 else qkv
    if new_order:
        return dict(zip("qkv", rows.chunk(3), strict=True))
    own = rows.unflatten(0, (-1, 3, width))
    return {name: own[:, i].flatten(0, 1) for i, name in enumerate("qkv")}


def scheduler(kind: str, steps: int, rescaled: bool, learnt: bool) -> DDPMScheduler:
    """The noise of their training; `UserError` where no scheduler has it.

    A rescaled network is told t 1000 / steps. Of its levels those at whole numbers are kept, 1000
    of them: what it is asked there is what it was taught.
    """
    if rescaled and steps % LEVELS:
        raise UserError(f"--rescale-timesteps of {steps} steps: a multiple of {LEVELS} is needed.")
    scale = 1000 / steps
    law = {"beta_start": scale * 1e-4, "beta_end": scale * 0.02, "beta_schedule": "linear"}
    law = law if kind == "linear" else {"beta_schedule": "squaredcos_cap_v2"}
    more = {"variance_type": "learned_range" if learnt else "fixed_large", "clip_sample": True}
    whole: Any = DDPMScheduler(num_train_timesteps=steps, **law, **more)
    if not rescaled or steps == LEVELS:
        return whole
    abar = whole.alphas_cumprod[:: steps // LEVELS].double()
    betas = 1 - abar / torch.cat([torch.ones(1), abar[:-1]])
    return DDPMScheduler(num_train_timesteps=LEVELS, trained_betas=betas.tolist(), **more)
