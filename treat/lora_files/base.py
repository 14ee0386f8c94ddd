"""A LoRA's modules and a base without weights in; the modules that do not fit it out."""

from collections.abc import Iterator, Mapping

import torch

from treat.lora_files.content import Content
from treat.lora_files.faults import Found
from treat.lora_files.flux import fused, underscored
from treat.lora_files.names import dotted, from_sgm

Shapes = Mapping[str, tuple[int, ...]]
"""Sides of a weight by its module."""
XLABS = {
    "qkv_lora1": "img_attn.qkv",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "proj_lora2": "txt_attn.proj",
}


class Base:
    """The denoiser of a base, on the meta device."""

    def __init__(self, base: str):
        from base_models.outline import open_outline  # diffusers: only where a base is named

        networks = open_outline(base, torch.float32)[1]
        self.name = "unet" if "unet" in networks else "transformer"
        network = networks[self.name]
        self.layers = int(getattr(getattr(network, "config", None), "layers_per_block", 2) or 2)
        weights = {
            name: getattr(one, "weight", None) for name, one in network.named_modules() if name
        }
        self.shapes: Shapes = {
            name: tuple(weight.shape)
            for name, weight in weights.items()
            if isinstance(weight, torch.Tensor) and weight.ndim in (2, 4)
        }
        self.underscored = {name.replace(".", "_"): name for name in self.shapes}

    def held(self, place: str, naming: str) -> tuple[str, ...]:
        """The modules that a place means; where it means none, what it is called itself."""
        bare = place.removeprefix("base_model.model.").removeprefix(f"{self.name}.")
        if naming in ("kohya-flux", "comfy-flux", "comfy-flux-peft"):
            whole = fused(place)
            return whole.holds if whole else (place,)
        if naming == "kohya-unet":
            rest = place.removeprefix("lora_unet_")
            return (self.underscored.get(rest) or dotted(place) or rest,)
        if naming == "kohya-sgm":
            return (from_sgm(place, self.layers) or place,)
        if naming == "onetrainer-flux":
            rest = place.removeprefix("lora_transformer_")
            return (underscored(rest) or rest,)
        if naming == "old-unet":
            bare = bare.replace(".processor.", ".")
            return (f"{bare}.0" if bare.endswith(".to_out") else bare,)
        if naming == "xlabs-flux":
            return _xlabs(place)
        return (bare,)


def _xlabs(place: str) -> tuple[str, ...]:
    block, _, tail = place.removeprefix("diffusion_model.").partition(".processor.")
    if block.startswith("single_blocks") and tail == "qkv_lora":
        whole = fused(f"{block}.linear1")
        return whole.holds[:3] if whole else (place,)
    inner = "linear2" if tail == "proj_lora" else XLABS.get(tail, tail)
    whole = fused(f"{block}.{inner}")
    return whole.holds if whole else (place,)


def against(content: Content, base: Base) -> Iterator[Found]:
    """Modules that the base has not, and sides that do not fit."""
    if not content.denoiser:
        return
    unet = "unet" in content.naming or "sgm" in content.naming or content.family == "unet"
    if unet != (base.name == "unet"):
        yield "base-family", "file", f"a {base.name}"
        return
    for place, one in content.denoiser.items():
        modules = base.held(place, one.naming)
        lost = [name for name in modules if name not in base.shapes]
        if lost:
            yield "base-module", place, lost[0] if lost[0] != place else ""
            continue
        shapes = [base.shapes[name] for name in modules]
        want = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        a, b = (content.shape(one.roles[role]) for role in "AB")
        have = (*b[:1], *a[1:])
        if have != want and not (have[:2] == want[:2] and _flat(a, want)):
            yield "base-shape", place, f"{list(have)}, and the base has {list(want)}"


def _flat(a: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """A matrix for a 1x1 convolution, or the other way round: readers reshape it."""
    return {*a[2:], *want[2:]} <= {1}
