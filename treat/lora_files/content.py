"""A LoRA file's checked header in; what it says of itself out: naming, family, ranks, scales."""

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from treat.lora_files.file import LoraFile
from treat.lora_files.names import METADATA, UNKNOWN, Module, dotted, modules

Family = str
"""`flux`, `sd3`, `sdxl`, `sd1`, `sd2`, `unet` or `transformer` (of these which is not told)."""
TEXT_WIDTHS = {2048: "sdxl", 1024: "sd2", 768: "sd1"}
"""Width of the text that a UNet's second attention reads."""

MAX_SETTINGS = 1 << 20
"""Letters of the adapter metadata; beyond, it is cut and thus no JSON."""
MAX_PATTERNS = 2000
"""Of ranks or of alphas; a file has one a module at most."""
UNSAID = 8
"""peft's own r and lora_alpha."""
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

    def said_rank(self, place: str) -> Any:
        """peft's r for one module by the adapter metadata."""
        return _of(self.settings, "rank_pattern", module_of(place), self.settings.get("r", UNSAID))

    def said_alpha(self, place: str) -> Any:
        default = self.settings.get("lora_alpha", UNSAID)
        return _of(self.settings, "alpha_pattern", module_of(place), default)

    def said_scale(self, place: str) -> float | None:
        """lora_alpha / r of the adapter metadata, for one module; None where it says nothing."""
        if not self.settings or misread(self.settings):
            return None
        rank, alpha = self.said_rank(place), self.said_alpha(place)
        return alpha / (rank**0.5 if self.settings.get("use_rslora") else rank)

    @cached_property
    def first_alpha(self) -> float | None:
        """Of the denoiser's alpha tensors, the one that comes first in the file."""
        there = [place for place in self.denoiser if place in self.alphas]
        begins = {p: self.file.entries[self.all[p].roles["alpha"]].begin for p in there}
        return self.alphas[min(there, key=begins.__getitem__)] if there else None

    def tensor_scale(self, place: str) -> float | None:
        """alpha / rank of the alpha tensor beside a module; None where there is none."""
        alpha, rank = self.alphas.get(place), self.rank(place)
        return alpha / rank if alpha is not None and rank else None


def module_of(place: str) -> str:
    """diffusers' name of a place, against which peft holds its patterns."""
    if place.startswith("lora_unet_"):
        return dotted(place) or place
    bare = place.removeprefix("unet.").removeprefix("transformer.").replace(".processor.", ".")
    return f"{bare}.0" if bare.endswith(".to_out") else bare


def misread(settings: dict[str, Any]) -> tuple[str, str] | None:
    """Why peft cannot take the scales of its settings: code and field; None where it can."""
    checks = {"r": _rank, "lora_alpha": _number}
    for name, sound in checks.items():
        if name in settings and not sound(settings[name]):
            return "metadata-type", name
    for name, sound in {"rank_pattern": _rank, "alpha_pattern": _number}.items():
        exceptions = settings.get(name, {})
        if not isinstance(exceptions, dict) or not all(map(sound, exceptions.values())):
            return "metadata-type", name
        if len(exceptions) > MAX_PATTERNS or not all(map(_plain, exceptions)):
            return "metadata-pattern", name
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < MANY


def _rank(value: Any) -> bool:
    return isinstance(value, int) and 0 < value < MANY


def _plain(pattern: str) -> bool:
    """Whether a stranger's pattern is one that takes no long time."""
    if (
        len(pattern) > 200
        or len(re.findall(r"[*+?{]", pattern)) > 2
        or re.search(r"\)[*+?{]|\\\d|\(\?", pattern)
    ):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _of(settings: dict[str, Any], field: str, module: str, default: Any) -> Any:
    """peft's exception for a module: the first pattern that fits it, or its end after a dot."""
    for pattern, value in settings.get(field, {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
