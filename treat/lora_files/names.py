"""A tensor's name in a LoRA file in; which naming it follows, its module and its role out.

A module is called by its *place*: its name as that naming writes it, without the role's ending.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The file in a folder that diffusers opens."""
METADATA = "lora_adapter_metadata"
"""Entry of a file's header that holds peft's settings."""
TRANSFORMER, UNET = "transformer.", "unet."
"""What diffusers puts before the names of the denoiser's modules."""
ENDINGS = {
    ".lora_A.weight": ("peft", "A"),
    ".lora_B.weight": ("peft", "B"),
    ".lora_A.default.weight": ("peft", "A"),
    ".lora_B.default.weight": ("peft", "B"),
    ".lora_down.weight": ("kohya", "A"),
    ".lora_up.weight": ("kohya", "B"),
    ".lora.down.weight": ("old", "A"),
    ".lora.up.weight": ("old", "B"),
    "_lora.down.weight": ("old", "A"),
    "_lora.up.weight": ("old", "B"),
    ".down.weight": ("xlabs", "A"),
    ".up.weight": ("xlabs", "B"),
    ".alpha": ("", "alpha"),
    ".dora_scale": ("", "DoRA"),
    ".lora_magnitude_vector": ("", "DoRA"),
    ".lora_magnitude_vector.weight": ("", "DoRA"),
    ".lora_mid.weight": ("kohya", "mid"),
    ".lora_A.bias": ("peft", "bias"),
    ".lora_B.bias": ("peft", "bias"),
    ".diff": ("", "difference"),
    ".diff_b": ("", "difference"),
}
"""End of a tensor's name -> how its pair is written, and what it is of its module."""
BLOCKS = r"(single_)?transformer_blocks"
UNET_BLOCKS = r"(down_blocks|mid_block|up_blocks)"
UNET_TOP = r"(conv_in|conv_out|time_embedding|add_embedding)"
FLUX_TOP = r"(img_in|txt_in|time_in|vector_in|guidance_in|final_layer)"
FLUX = rf"(double_blocks|single_blocks|{FLUX_TOP})"


class Naming(NamedTuple):
    """One way to write the modules of a denoiser."""

    title: str
    place: str
    """Pattern at the beginning of a place."""
    pair: str
    """How its pairs end (see `ENDINGS`)."""


NAMINGS = {
    "peft-transformer": Naming(
        "PEFT (diffusers, ai-toolkit), transformer", r"transformer\.", "peft"),
    "down-transformer": Naming("PEFT's modules, kohya's halves", r"transformer\.", "kohya"),
    "peft-unet": Naming("PEFT (diffusers), UNet", r"unet\.", "peft"),
    "peft-bare": Naming(
        "PEFT without diffusers' prefix",
        rf"(base_model\.model\.)?({BLOCKS}|{UNET_BLOCKS})\.", "peft"),
    "old-unet": Naming("diffusers before PEFT, UNet", r"unet\.", "old"),
    "kohya-unet": Naming(
        "kohya, UNet in diffusers' blocks", rf"lora_unet_({UNET_BLOCKS}|{UNET_TOP})(_|$)", "kohya"),
    "kohya-sgm": Naming(
        "kohya, UNet in the original blocks",
        r"lora_unet_(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_", "kohya"),
    "kohya-flux": Naming("kohya, FLUX in the original blocks", rf"lora_unet_{FLUX}", "kohya"),
    "comfy-flux": Naming("ComfyUI's own, FLUX", rf"diffusion_model\.{FLUX}", "kohya"),
    "comfy-flux-peft": Naming(
        "ComfyUI's own, FLUX, PEFT's halves", rf"diffusion_model\.{FLUX}", "peft"),
    "onetrainer-flux": Naming(
        "OneTrainer, FLUX in diffusers' blocks", r"lora_transformer_", "kohya"),
    "xlabs-flux": Naming(
        "XLabs, FLUX", r"(diffusion_model\.)?(double|single)_blocks\.\d+\.processor\.", "xlabs"),
    "helper-flux": Naming(
        "what diffusers' convert_state_dict_to_kohya makes of FLUX",
        rf"(lora_unet_)?(transformer_)?{BLOCKS}_", "kohya"),
}  # fmt: skip
"""The first that fits a place and its pair is taken."""
TEXT = re.compile(r"(text_encoder(_\d)?\.|text_encoders\.|lora_te\d?_)")
"""Beginning of a text encoder's places, in any naming."""
UNKNOWN = "unknown"


class Part(NamedTuple):
    """One tensor's name, taken apart."""

    place: str
    pair: str
    """How the pair is written; empty where the role does not tell."""
    role: str
    """A, B, alpha, mid, bias, DoRA, difference or unknown."""


class Module(NamedTuple):
    """The tensors of one place."""

    naming: str
    roles: Mapping[str, str]
    """Role -> the tensor's name."""

    @property
    def whole(self) -> bool:
        return "A" in self.roles and "B" in self.roles

    @property
    def stray(self) -> bool:
        """Whether its tensor is no part of a LoRA's module; such a place has one."""
        return UNKNOWN in self.roles


def taken_apart(name: str) -> Part:
    for ending, (pair, role) in ENDINGS.items():
        if name.endswith(ending) and (pair != "xlabs" or ".processor." in name):
            return Part(name.removesuffix(ending), pair, role)
    return Part(name, "", UNKNOWN)


def meant(name: str) -> str:
    """The ending that a name comes near without having it; empty where there is none."""
    ending = "." + ".".join(name.split(".")[-2:])
    near = get_close_matches(ending, ENDINGS, n=1, cutoff=0.8)
    return near[0] if near else ""


def naming_of(place: str, pair: str) -> str:
    """The naming of a denoiser's module, `text` of a text encoder's, else `unknown`."""
    if TEXT.match(place):
        return "text"
    for name, naming in NAMINGS.items():
        if re.match(naming.place, place) and pair in ("", naming.pair):
            return name
    return UNKNOWN


def modules(names: Iterable[str]) -> dict[str, Module]:
    """The modules of a file by their places, in the order of their names."""
    pairs: dict[str, str] = {}
    roles: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        place, pair, role = taken_apart(name)
        if pair and pairs.get(place) and pairs[place] != pair:
            place = name  # no reader pairs halves of two ways of writing
        roles.setdefault(place, {})[role] = name
        pairs[place] = pairs.get(place) or pair
    return {place: Module(naming_of(place, pairs[place]), found) for place, found in roles.items()}


# UNets: kohya writes an underscore for every dot

WORDS = re.compile(
    r"(down_blocks|mid_block|up_blocks|transformer_blocks|time_emb_proj|time_embedding"
    r"|add_embedding|conv_shortcut|conv_in|conv_out|proj_in|proj_out|to_[a-z]+|linear_\d"
    r"|[a-z]+\d*|\d+)(?:_|$)"
)
"""What stands between two dots of a UNet's module."""
SGM = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
SGM_TOP = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}
"""The original code's names of modules -> diffusers'."""


def dotted(place: str) -> str | None:
    """A UNet's module from kohya's name of it in diffusers' blocks; None where that fails."""
    rest = place.removeprefix("lora_unet_")
    words = [found[1] for found in WORDS.finditer(rest)]
    return ".".join(words) if "_".join(words) == rest else None


def from_sgm(place: str, layers: int = 2) -> str | None:
    """The same from the original blocks, of which a level has so many `layers`."""
    rest = place.removeprefix("lora_unet_")
    if rest in SGM_TOP:
        return SGM_TOP[rest]
    found = re.fullmatch(r"(input_blocks|output_blocks)_(\d+)_(\d)_(.+)", rest)
    middle = re.fullmatch(r"middle_block_([012])_(.+)", rest)
    if middle:
        inner = ("resnets.0", "attentions.0", "resnets.1")[int(middle[1])]
        return _inside(f"mid_block.{inner}", middle[2])
    if not found:
        return None
    side, block, inner, tail = found[1], int(found[2]), int(found[3]), found[4]
    level, layer = divmod(block - (side == "input_blocks"), layers + 1)
    level_name = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{level}"
    if tail in ("op", "conv"):
        return f"{level_name}.{'downsamplers' if tail == 'op' else 'upsamplers'}.0.conv"
    return _inside(f"{level_name}.{('resnets', 'attentions')[inner > 0]}.{layer}", tail)


def _inside(block: str, tail: str) -> str | None:
    inner = SGM.get(tail) or dotted(tail)
    return f"{block}.{inner}" if inner else None
