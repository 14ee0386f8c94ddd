"""A LoRA file's checked header in; what it says of itself out: naming, family, ranks, scales."""

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from treat.adapter import METADATA
from treat.lora_files.file import LoraFile
from treat.lora_files.names import UNKNOWN, Module, modules

Family = str
"""`flux`, `sd3`, `sdxl`, `sd1`, `sd2`, `unet` or `transformer` (of these which is not told)."""
TEXT_WIDTHS = {2048: "sdxl", 1024: "sd2", 768: "sd1"}
"""Width of the text that a UNet's second attention reads."""

MAX_SETTINGS = 1 << 20
"""Letters of the adapter metadata; beyond, it is cut and thus no JSON."""
MANY = 1e9
"""Neither a rank nor an alpha."""
FLUX_WIDTH, SD3_WIDTHS = 3072, {1536, 2432}
"""Inputs of their attention."""


@dataclass(frozen=True)
class Content:
    """What the names, the shapes and the few numbers of a file tell; no weight is looked at."""

    file: LoraFile

    @cached_property
    def all(self) -> dict[str, Module]:
        """Every place that has a tensor."""
        return modules(self.file.entries)

    @cached_property
    def denoiser(self) -> dict[str, Module]:
        """The whole modules of transformer or UNet whose naming is known."""
        return {
            place: one
            for place, one in self.all.items()
            if one.whole and one.naming not in ("text", UNKNOWN)
        }

    @cached_property
    def texts(self) -> dict[str, Module]:
        return {place: one for place, one in self.all.items() if one.naming == "text"}

    @cached_property
    def namings(self) -> list[str]:
        """The commonest first."""
        parts = [one for one in self.all.values() if not one.stray]
        found = [one.naming for one in parts if one.naming not in ("text", UNKNOWN)]
        return sorted(set(found), key=lambda name: (-found.count(name), name))

    @property
    def naming(self) -> str:
        return self.namings[0] if self.namings else UNKNOWN

    @cached_property
    def family(self) -> Family:
        if "flux" in self.naming:
            return "flux"
        if "unet" in self.naming or "sgm" in self.naming:
            return self._unet()
        if any(re.search("(down|up)_blocks|mid_block", place) for place in self.all):
            return self._unet()
        said = self.file.metadata.get("modelspec.architecture", "")
        if "flux" in said or any("single_transformer_blocks." in place for place in self.all):
            return "flux"
        if "stable-diffusion-3" in said or any(".attn2." in place for place in self.all):
            return "sd3"
        widths = {self.inputs(one) for one in self.denoiser.values()}
        return "flux" if FLUX_WIDTH in widths else "sd3" if widths & SD3_WIDTHS else "transformer"

    def _unet(self) -> Family:
        for place, one in self.denoiser.items():
            if re.search(r"attn2[._](processor[._])?to_[kv]$", place):
                return TEXT_WIDTHS.get(self.inputs(one), "unet")
        return "unet"

    def shape(self, name: str) -> tuple[int, ...]:
        return self.file.entries[name].shape

    def inputs(self, one: Module) -> int:
        """Columns of A; zero where it has none."""
        return (*self.shape(one.roles["A"])[1:], 0)[0]

    def rank(self, place: str) -> int:
        """Rows of A; zero where it has none."""
        return (self.shape(self.all[place].roles["A"]) or (0,))[0]

    @cached_property
    def ranks(self) -> set[int]:
        """Of the denoiser's modules."""
        there = self.denoiser.items()
        return {self.rank(place) for place, one in there if self.shape(one.roles["A"])}

    @cached_property
    def alphas(self) -> dict[str, float]:
        """By place, of those that are one number."""
        found = {}
        for place, one in self.all.items():
            name = one.roles.get("alpha")
            if name and self.size(name) == 1:
                found[place] = float(self.file.tensor(name).double().item())
        return found

    def size(self, name: str) -> int:
        return math.prod(self.shape(name))

    @cached_property
    def adapter_metadata(self) -> dict[str, Any] | None:
        """diffusers' own entry; None where it is absent or no JSON object."""
        try:
            said = json.loads(self.file.metadata.get(METADATA, "")[:MAX_SETTINGS])
        except (ValueError, RecursionError):
            return None
        return said if isinstance(said, dict) else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its fields for the denoiser, without their prefix."""
        prefix = "unet." if "unet" in self.naming else "transformer."
        return {
            name.removeprefix(prefix): value
            for name, value in (self.adapter_metadata or {}).items()
            if name.startswith(prefix)
        }

    def said_scale(self, place: str) -> float | None:
        """lora_alpha / r of the adapter metadata, for one module; None where it says nothing."""
        bare = place.removeprefix("unet.").removeprefix("transformer.")
        rank = _of(self.settings, "rank_pattern", bare, self.settings.get("r"))
        alpha = _of(self.settings, "alpha_pattern", bare, self.settings.get("lora_alpha"))
        if not all(_sound(one) for one in (rank, alpha)):
            return None
        return alpha / (rank**0.5 if self.settings.get("use_rslora") else rank)

    def tensor_scale(self, place: str) -> float | None:
        """alpha / rank of the alpha tensor beside a module; None where there is none."""
        alpha, rank = self.alphas.get(place), self.rank(place)
        return alpha / rank if alpha is not None and rank else None


def _sound(number: Any) -> bool:
    return isinstance(number, int | float) and 0 < number < MANY


def _of(settings: dict[str, Any], pattern: str, module: str, default: Any) -> Any:
    """peft's exception for a module: a pattern names its end."""
    exceptions = settings.get(pattern)
    for name, value in exceptions.items() if isinstance(exceptions, dict) else ():
        plain = str(name).removeprefix("^")
        if module == plain or module.endswith("." + plain):
            return value
    return default
