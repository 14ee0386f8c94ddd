"""What each downstream reader makes of a LoRA file, by its naming: rules as data, and a verdict.

diffusers' rules are run in the tests. Those of ComfyUI, Forge and sd-scripts were read in their
sources (the commits are named below). Of these ComfyUI's loader alone was run, at another commit
and by hand; docs/downstream.md says how.
"""

import re
from collections import Counter
from typing import NamedTuple

from treat.lora_files.content import Content

DIFFUSERS, COMFYUI, FORGE, KOHYA = "diffusers", "ComfyUI", "Forge", "sd-scripts"
NOTHING, ALL = r"(?!)", r""
BLOCKS_ONLY = r"(lora_unet_|diffusion_model\.)?(double_blocks|single_blocks)"
"""diffusers puts no `transformer.` before what it makes of FLUX's other modules, and loses them."""
NO_ATTENTION = r"(?!.*\.to_(q|k|v|out))"
"""ComfyUI waits for `.processor.to_q` in a UNet's attention, as diffusers wrote before PEFT."""
SD_SCRIPTS_UNET = r"lora_unet_.*(attentions|transformer_blocks|resnets|samplers|put_blocks|middle)"
SD_SCRIPTS_FLUX = r"lora_unet_(double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guid)"
ATTENTION = re.compile(r".*_to_(q|k|v|out_0)$")
BESIDE_ATTENTION = r"lora_transformer_(single_)?transformer_blocks_\d+_(?!attn_)"
TENSORS, METADATA, EITHER, IGNORED = "tensors", "metadata", "either", "ignored"
COMMONEST = "tensors, the commonest in attention"
"""diffusers misses its own names of the alphas in a UNet's attention: it takes the commonest."""


class Rule(NamedTuple):
    """What a reader does with one naming."""

    loads: str = ALL
    """Pattern at the beginning of the places that it finds in its network; the rest is dropped."""
    alpha: str = TENSORS
    """Where it looks for the scale; elsewhere it takes 1."""
    raises: str = NOTHING
    """Pattern of the places for which it refuses the whole file."""
    lone: str = ""
    """The halves, A or B, whose lack it meets with an error; else it says nothing."""


NONE = Rule(NOTHING)
INTERFACES = {
    "peft-transformer": Rule(lone="A"),
    "down-transformer": Rule(lone="A"),
    "peft-unet": Rule(NO_ATTENTION, lone="A"),
    "old-unet": Rule(lone="A"),
    "kohya-unet": Rule(lone="A"),
    "kohya-sgm": Rule(lone="A"),
    "kohya-flux": Rule(lone="A"),
    "comfy-flux": Rule(lone="A"),
    "comfy-flux-peft": Rule(lone="A"),
}
"""Forge's loader grew out of ComfyUI's."""
READERS: dict[str, dict[str, Rule]] = {
    DIFFUSERS: {
        "peft-transformer": Rule(alpha=EITHER, lone="B"),
        "peft-unet": Rule(alpha=METADATA),
        "old-unet": Rule(alpha=METADATA),
        "down-transformer": Rule(alpha=IGNORED),
        "kohya-unet": Rule(alpha=COMMONEST, lone="AB"),
        "kohya-sgm": Rule(alpha=COMMONEST, lone="AB"),
        "kohya-flux": Rule(BLOCKS_ONLY, lone="AB"),
        "comfy-flux": Rule(BLOCKS_ONLY, lone="AB"),
        "onetrainer-flux": Rule(raises=BESIDE_ATTENTION, lone="AB"),
        "helper-flux": Rule(NOTHING, raises=ALL),
        "xlabs-flux": Rule(alpha=IGNORED),
    },
    COMFYUI: INTERFACES | {"onetrainer-flux": Rule(lone="A")},
    FORGE: INTERFACES,
    KOHYA: {
        "kohya-unet": Rule(SD_SCRIPTS_UNET),
        "kohya-sgm": Rule(SD_SCRIPTS_UNET),
        "kohya-flux": Rule(SD_SCRIPTS_FLUX),
    },
}
"""Reader -> naming -> rule. A naming that is not listed loads nothing."""
SD3 = {FORGE: NONE, DIFFUSERS: Rule(alpha=METADATA)}
"""Forge has SD 3's names switched off; diffusers reads its alphas as a UNet's."""
NO_DEFAULT = (FORGE, KOHYA)
"""They do not know peft's adapter name within a name: `.lora_A.default.weight`."""
SOURCES = {
    DIFFUSERS: "0.42, run in the tests",
    COMFYUI: "its source at 41444b5, read; another commit's loader run by hand",
    FORGE: "its source at 00f1cd3, read and not run",
    KOHYA: "its source at 48d368f, read and not run",
}


class Verdict(NamedTuple):
    """One reader, one file."""

    reader: str
    loaded: int
    dropped: int
    """Modules that it passes over; most readers say so nowhere but in a log."""
    off: int
    """Modules of the loaded ones that get another strength than the file means."""
    strengths: tuple[float, ...]
    """The different factors before B A of the loaded modules, the least first."""
    said: tuple[float, ...]
    """Those that the file means."""
    refuses: str = ""
    strays: int = 0
    """Tensors of no module: passed over, or put over the base's own."""

    @property
    def whole(self) -> bool:
        """Every module, at the strength that the file means."""
        return bool(self.strengths) and not (
            self.refuses or self.dropped or self.off or self.strays
        )


def rule_of(reader: str, content: Content) -> Rule:
    if content.family == "sd3" and content.naming == "peft-transformer" and reader in SD3:
        return SD3[reader]
    return READERS[reader].get(content.naming, NONE)


def verdict(reader: str, content: Content, refuses: str = "") -> Verdict:
    """By the rules; `refuses` is the finding for which it raises, if there is one."""
    strengths, said, loaded, off = set(), set(), 0, 0
    whole = [place for place, one in content.all.items() if one.whole]
    for place in whole:
        rule = rule_of(reader, content)
        one = content.all[place]
        if one.naming == "text":  # goes with the naming of the rest
            alpha = TENSORS if rule.alpha == COMMONEST else rule.alpha
            rule = Rule(NOTHING if rule.loads == NOTHING else ALL, alpha)
        elif one.naming != content.naming:
            rule = READERS[reader].get(one.naming, NONE)
        if ".default." in one.roles["A"] and reader in NO_DEFAULT:
            rule = NONE
        said.add(meant(content, place))
        if re.match(rule.raises, place):
            refuses = refuses or "names"
        if re.match(rule.loads, place):
            loaded += 1
            strengths.add(applied(content, place, rule))
            off += applied(content, place, rule) != meant(content, place)
    refuses = refuses or _lone(reader, content)
    if refuses:
        loaded, off, strengths = 0, 0, set()
    left = len(whole) - loaded
    strays = sum(one.stray for one in content.all.values())
    return Verdict(reader, loaded, left, off, _sorted(strengths), _sorted(said), refuses, strays)


def keeps_strays(reader: str, content: Content) -> bool:
    """Whether it takes a file for all that some of its names have no `lora` in them."""
    flux = content.naming == "peft-transformer" and content.family != "sd3"
    return reader == DIFFUSERS and flux


def _lone(reader: str, content: Content) -> str:
    """The missing half over which a reader stumbles."""
    for one in content.all.values():
        lacking = {"A", "B"} - one.roles.keys()
        rule = READERS[reader].get(one.naming, NONE)
        if one.naming == content.naming:
            rule = rule_of(reader, content)
        for half in lacking if len(lacking) == 1 else ():
            if half in rule.lone:
                return f"half-{half}"
    return ""


def _sorted(numbers: set[float]) -> tuple[float, ...]:
    return tuple(sorted(numbers))


def meant(content: Content, place: str) -> float:
    """The scale that a file gives a module: its alpha tensor's, else its metadata's, else 1."""
    for scale in (content.tensor_scale(place), content.said_scale(place)):
        if scale is not None:
            return round(scale, 6)
    return 1.0


def applied(content: Content, place: str, rule: Rule) -> float:
    """The scale that a reader gives it."""
    scale = None
    alphas = [content.alphas[one] for one in content.denoiser if one in content.alphas]
    if rule.alpha == COMMONEST and alphas:
        own, (commonest, _) = content.alphas.get(place), Counter(alphas).most_common(1)[0]
        alpha = commonest if own is None or ATTENTION.match(place) else own
        scale = alpha / max(content.rank(place), 1)
    if rule.alpha == EITHER and content.first_alpha is not None:
        alpha = content.alphas.get(place, content.first_alpha)
        scale = alpha / max(content.rank(place), 1)
    elif rule.alpha in (TENSORS, EITHER):
        scale = content.tensor_scale(place)
    if scale is None and rule.alpha in (METADATA, EITHER, COMMONEST):
        scale = content.said_scale(place)
    return 1.0 if scale is None else round(scale, 6)
