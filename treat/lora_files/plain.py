"""A LoRA file of any naming in; its modules by diffusers' names, with A, B and alpha, out.

And the other way: PEFT's or kohya's tensors. Nothing is rounded: what a naming cannot hold exactly
is a `UserError`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from core.errors import UserError
from treat.lora_files import flux
from treat.lora_files.content import Content
from treat.lora_files.names import TRANSFORMER, UNET, dotted, from_sgm

PACKED = "diffdoctor.packed_ranks"
"""Metadata: ranks of what stands in one fused module, so that it can be taken apart again."""
FLUX_NAMINGS = ("kohya-flux", "comfy-flux", "comfy-flux-peft")


@dataclass(frozen=True)
class Weights:
    """One module's change: alpha / rank * B A."""

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Plain:
    """A LoRA free of any naming."""

    family: str
    modules: Mapping[str, Weights]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def uniform(self) -> bool:
        """One alpha and one rank for all."""
        return len({(one.alpha, one.rank) for one in self.modules.values()}) == 1


def read_plain(content: Content, family: str, layers: int = 2) -> Plain:
    """`layers` a level of the UNet has, for names in the original blocks."""
    found: dict[str, Weights] = {}
    for place in content.denoiser:
        for name, weights in held(content, place, layers):
            if name in found:
                raise UserError(f"'{name}' stands twice in {content.file.path}: export it again.")
            found[name] = weights
    return Plain(family, found, content.file.metadata)


def held(content: Content, place: str, layers: int) -> Iterator[tuple[str, Weights]]:
    """diffusers' modules that one place holds."""
    one = content.denoiser[place]
    a, b = (content.file.tensor(one.roles[role]).clone() for role in "AB")
    said = content.said_scale(place)
    alpha = content.alphas.get(place, (1.0 if said is None else said) * len(a))
    if one.naming in FLUX_NAMINGS:
        yield from _apart(content, place, Weights(a, b, alpha))
        return
    name = module_name(place, one.naming, layers)
    if name is None:
        raise UserError(f"'{place}' is no module that can be named otherwise: take it out.")
    yield name, Weights(a, b, alpha)


def module_name(place: str, naming: str, layers: int = 2) -> str | None:
    """diffusers' name of a place that holds one module."""
    bare = place.removeprefix("base_model.model.").removeprefix(TRANSFORMER).removeprefix(UNET)
    match naming:
        case "kohya-unet":
            return dotted(place)
        case "kohya-sgm":
            return from_sgm(place, layers)
        case "onetrainer-flux":
            return flux.underscored(place.removeprefix("lora_transformer_"))
        case "old-unet":
            bare = bare.replace(".processor.", ".")
            return f"{bare}.0" if bare.endswith(".to_out") else bare
        case "peft-transformer" | "peft-unet" | "peft-bare" | "down-transformer":
            return bare
    return None


def _apart(content: Content, place: str, whole: Weights) -> Iterator[tuple[str, Weights]]:
    module = flux.fused(place)
    if module is None:
        raise UserError(f"FLUX has no module '{place}': take it out.")
    if len(module.holds) == 1:
        swap = module.holds[0] == flux.SWAPPED
        yield module.holds[0], replace(whole, b=flux.swapped(whole.b)) if swap else whole
        return
    sides = flux.rows(module, whole.a.shape[1])
    if sum(sides) != len(whole.b):
        raise UserError(f"'{place}' has other sides than FLUX: it is of another network.")
    ranks = _packed(content.file.metadata).get(module.place)
    if ranks is None and PACKED in content.file.metadata:
        ranks = []  # we put it together, and one A serves all
    pairs = flux.parted((whole.a, whole.b), sides, ranks)
    for name, pair in zip(module.holds, pairs, strict=True):
        if pair is not None:
            yield name, Weights(*pair, whole.scale * len(pair[0]))


def _packed(metadata: Mapping[str, str]) -> dict[str, list[int]]:
    try:
        said = json.loads(metadata.get(PACKED, "{}"))
        return {str(n): [int(one) for one in ranks] for n, ranks in said.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


# Scales


def at_scale_one(plain: Plain) -> Plain | None:
    """The scales folded into B; None where one is no power of two, or B would overflow."""
    folded = {}
    for name, one in plain.modules.items():
        if one.scale <= 0 or math.frexp(one.scale)[0] != 0.5:
            return None
        b = (one.b.double() * one.scale).to(one.b.dtype)
        if not torch.equal(b.double() / one.scale, one.b.double()):
            return None
        folded[name] = Weights(one.a, b, float(one.rank))
    return replace(plain, modules=folded)


# PEFT


def peft_tensors(plain: Plain) -> tuple[dict[str, Tensor], Plain]:
    """By diffusers' names, and the weights that they hold.

    Scales are folded; where that would round, FLUX keeps alpha tensors, which diffusers and ComfyUI
    both read, and a UNet has its one alpha in the metadata, which diffusers reads: no other reader
    finds a UNet's attention by these names.
    """
    prefix = UNET if is_unet(plain.family) else TRANSFORMER
    kept = at_scale_one(plain) or plain
    tensors = {}
    for name, one in kept.modules.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = one.a
        tensors[f"{prefix}{name}.lora_B.weight"] = one.b
        if kept is plain and plain.family == "flux":
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(one.alpha)
    if kept is plain and not is_unet(plain.family) and plain.family != "flux":
        raise UserError(
            "its alphas do not fold into B without rounding, and of a LoRA in these names only "
            "diffusers would read them: keep the file, or train with alpha = rank."
        )
    if kept is plain and plain.family != "flux" and not plain.uniform:
        raise UserError(
            "its alphas differ and do not fold into B without rounding, which PEFT names cannot "
            "hold: keep the file, or train with alpha = rank."
        )
    return tensors, kept


def peft_settings(plain: Plain) -> dict[str, object] | None:
    """The adapter metadata; None where one rank does not say it, or alpha tensors do."""
    first = next(iter(plain.modules.values()))
    if not plain.uniform or (plain.family == "flux" and first.scale != 1):
        return None
    prefix = UNET if is_unet(plain.family) else TRANSFORMER
    settings = {
        "r": first.rank,
        "lora_alpha": int(first.alpha) if first.alpha.is_integer() else first.alpha,
        "target_modules": sorted(plain.modules),
        "lora_dropout": 0.0,
        "bias": "none",
    }
    return {prefix + name: value for name, value in settings.items()}


def is_unet(family: str) -> bool:
    return family in ("unet", "sdxl", "sd1", "sd2")


# kohya


def kohya_tensors(plain: Plain) -> tuple[dict[str, Tensor], Plain, dict[str, list[int]]]:
    """By kohya's names, the weights by their places, and the ranks of what was packed.

    UNets keep diffusers' blocks, which every reader of kohya's names knows as well.
    """
    kept = at_scale_one(plain) or plain
    packed: dict[str, list[int]] = {}
    if is_unet(plain.family):
        if kept is plain and not plain.uniform:
            raise UserError(
                "its alphas differ and do not fold into B without rounding, and diffusers reads "
                "one alpha of a UNet's attention: keep the file, or train with alpha = rank."
            )
        places = {name.replace(".", "_"): one for name, one in kept.modules.items()}
    elif plain.family == "flux":
        places = dict(_fused(kept, packed))
    else:
        raise UserError(f"no kohya naming of {plain.family} is known here: leave it in PEFT names.")
    tensors = {}
    # Alphas that differ are misread by diffusers: where all scales are 1, none says the same.
    silent = kept is not plain or all(one.scale == 1 for one in places.values())
    silent = silent and is_unet(plain.family) and len({one.rank for one in places.values()}) > 1
    for place, one in places.items():
        tensors[f"lora_unet_{place}.lora_down.weight"] = one.a
        tensors[f"lora_unet_{place}.lora_up.weight"] = one.b
        if not silent:
            tensors[f"lora_unet_{place}.alpha"] = torch.tensor(one.alpha)
    return tensors, replace(kept, modules=places), packed


def _fused(plain: Plain, packed: dict[str, list[int]]) -> Iterator[tuple[str, Weights]]:
    """FLUX's modules put together as the original code has them; notes the ranks in `packed`."""
    groups: dict[flux.Fused, dict[str, Weights]] = {}
    for name, one in plain.modules.items():
        module = flux.holder(name)
        if module is None:
            raise UserError(f"FLUX has no module '{name}': take it out.")
        groups.setdefault(module, {})[name] = one
    for module, group in groups.items():
        yield module.place, _together(module, group, packed)


def _together(
    module: flux.Fused, group: Mapping[str, Weights], packed: dict[str, list[int]]
) -> Weights:
    one = next(iter(group.values()))
    if len(module.holds) == 1:
        swap = module.holds[0] == flux.SWAPPED
        return replace(one, b=flux.swapped(one.b)) if swap else one
    members = [group.get(name) for name in module.holds]
    sides = flux.rows(module, one.a.shape[1])
    for member, side in zip(members, sides, strict=True):
        if member is not None and (len(member.b), member.a.shape[1]) != (side, sides[0]):
            raise UserError(f"'{module.place}' has other sides than FLUX: kohya cannot hold it.")
        if member is not None and member.a.dtype != one.a.dtype:
            raise UserError(f"'{module.place}' has several dtypes: write one dtype first.")
    if len({member.scale for member in group.values()}) > 1:
        raise UserError(
            f"the alphas in '{module.place}' differ and do not fold into B without rounding: kohya "
            "has one for all of it; leave the file in PEFT names."
        )
    a, b = flux.joined([m and (m.a, m.b) for m in members], sides)
    if len(a) != one.rank or len(group) != len(members):
        packed[module.place] = [m.rank if m else 0 for m in members]
    return Weights(a, b, one.scale * len(a))
