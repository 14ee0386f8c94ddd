"""Every fault that `diffdoctor verify` knows: what it is, its cure, and who is misled by it."""

from typing import NamedTuple

from treat.lora_files.readers import COMFYUI, DIFFUSERS, FORGE, KOHYA

EVERYONE = (DIFFUSERS, COMFYUI, FORGE, KOHYA)
INTERFACES = (COMFYUI, FORGE)
AGAIN = "copy or download it again"
EXPORT = "export it again, or ask its author to"
OUT = "take it out"


class Fault(NamedTuple):
    """A kind of finding."""

    what: str
    cure: str
    wrong: tuple[str, ...] = ()
    """Readers that load the file wrongly for it, in part, or not at all."""
    refuse: tuple[str, ...] = ()
    """Those of them that raise."""


HEADER = {
    "header-short": Fault("no header", AGAIN, EVERYONE, EVERYONE),
    "is-pointer": Fault(
        "a git-LFS pointer, not the file", "run `git lfs pull` in its folder", EVERYONE, EVERYONE
    ),
    "is-page": Fault(
        "a web page", "download the file itself, logged in if need be", EVERYONE, EVERYONE
    ),
    "is-pickle": Fault(
        "a pickle or zip (.pt, .bin, .ckpt), which may run a stranger's code",
        "ask for the .safetensors file",
        EVERYONE,
        EVERYONE,
    ),
    "is-text": Fault("a text", "name the .safetensors file", EVERYONE, EVERYONE),
    "no-safetensors": Fault(
        "no safetensors file", "name the .safetensors file", EVERYONE, EVERYONE
    ),
    "header-cut": Fault("header cut off", AGAIN, EVERYONE, EVERYONE),
    "header-large": Fault("header larger than any LoRA's", "do not open it", EVERYONE, EVERYONE),
    "header-json": Fault("header that the format does not allow", AGAIN, EVERYONE, EVERYONE),
    "too-many": Fault("more entries than any LoRA has", "do not open it", EVERYONE, EVERYONE),
    "name-twice": Fault("a name given twice", EXPORT, EVERYONE, EVERYONE),
    "no-tensors": Fault("no tensors", EXPORT, EVERYONE, EVERYONE),
    "dtype-unknown": Fault("a dtype that safetensors has not", EXPORT, EVERYONE, EVERYONE),
    "offsets-reversed": Fault("a tensor that ends before it begins", AGAIN, EVERYONE, EVERYONE),
    "tensor-cut": Fault("the file is cut off", AGAIN, EVERYONE, EVERYONE),
    "size-wrong": Fault("shape and bytes disagree", AGAIN, EVERYONE, EVERYONE),
    "overlap": Fault("tensors overlap", EXPORT, EVERYONE, EVERYONE),
    "hole": Fault("bytes between the tensors", EXPORT, EVERYONE, EVERYONE),
    "rest": Fault("bytes after the tensors", AGAIN, EVERYONE, EVERYONE),
}
"""Where these stand, nothing else is looked at."""
MERGE = "merge it and extract a plain LoRA"
CONVERT = "run `diffdoctor convert FILE --to peft --out NEW.safetensors`"
KOHYA_NAMES = "a UNet's: `diffdoctor convert FILE --to kohya --out NEW.safetensors`"
FAULTS = HEADER | {
    # names
    "unknown-name": Fault("tensors of no known naming", OUT, EVERYONE, (DIFFUSERS,)),
    "base-weight": Fault(
        "a base's own weight, which diffusers puts over FLUX's without a word", OUT, EVERYONE,
        (DIFFUSERS,)),
    "unknown-role": Fault(
        "no part of a LoRA that a reader knows", f"{OUT}, or correct a misspelt name", EVERYONE),
    "no-module": Fault("no whole module of a denoiser", EXPORT, EVERYONE),
    "mixed": Fault("several namings in one file", "put each in its own file", EVERYONE),
    "prefix": Fault(
        "no prefix before the modules", CONVERT, EVERYONE
    ),
    "helper": Fault(
        "FLUX by diffusers' convert_state_dict_to_kohya, which knows UNets only",
        "save it by save_lora_weights", EVERYONE, (DIFFUSERS,),
    ),
    "adapter-name": Fault(
        "peft's adapter name ('default') in the names", CONVERT, (FORGE,)
    ),
    "dora": Fault(
        "DoRA by kohya's dora_scale, which diffusers takes out", MERGE, (DIFFUSERS, KOHYA)
    ),
    "dora-peft": Fault(
        "DoRA by peft's magnitudes, which only diffusers reads", MERGE, INTERFACES
    ),
    "extra": Fault("differences, biases or middle factors", "train a plain LoRA", (DIFFUSERS,)),
    # pairs and shapes
    "half-A": Fault("B without its A (lora_A, lora_down)", EXPORT, EVERYONE),
    "half-B": Fault("A without its B (lora_B, lora_up)", EXPORT, EVERYONE),
    "alpha-alone": Fault("an alpha without its module", EXPORT, (DIFFUSERS,), (DIFFUSERS,)),
    "rank": Fault("A's rows are not B's columns", EXPORT, EVERYONE, (DIFFUSERS,)),
    "transposed-A": Fault("A is transposed", "transpose it", EVERYONE, (DIFFUSERS,)),
    "transposed-B": Fault("B is transposed", "transpose it", EVERYONE, (DIFFUSERS,)),
    "transposed": Fault("A and B are transposed", "transpose both", EVERYONE, (DIFFUSERS,)),
    "sides": Fault("neither a matrix nor a convolution", EXPORT, EVERYONE, (DIFFUSERS,)),
    "empty": Fault("a tensor with no number in it", EXPORT, EVERYONE, (DIFFUSERS,)),
    "ranks-differ": Fault("modules of different ranks", "nothing: PEFT keeps them apart"),
    # dtypes
    "integer": Fault("weights of whole numbers", EXPORT, EVERYONE, (DIFFUSERS,)),
    "odd-dtype": Fault("weights in 8 or 64 bits", "write bf16, fp16 or fp32"),
    "dtypes": Fault("halves of different precision", "write one dtype"),
    # alphas
    "alpha-integer": Fault(
        "alpha as a whole number (diffusers refuses it in PEFT names)", CONVERT
    ),
    "alpha-integer-peft": Fault(
        "alpha as a whole number in PEFT names", CONVERT, (DIFFUSERS,), (DIFFUSERS,)
    ),
    "alpha-shape": Fault("alpha is not one number", EXPORT, EVERYONE, EVERYONE),
    "alpha-sign": Fault("alpha is negative or no number", EXPORT, EVERYONE),
    "alpha-zero": Fault(
        "alpha is zero, which sd-scripts takes for the rank", "write the rank", EVERYONE
    ),
    "alpha-partial": Fault(
        "some modules have an alpha and some none", CONVERT, (DIFFUSERS,)
    ),
    "alpha-differs": Fault(
        "alphas differ: in a UNet's attention diffusers takes the commonest", CONVERT, (DIFFUSERS,)
    ),
    "alpha-peft": Fault(
        "alpha tensors in PEFT names, which only FLUX may have", CONVERT, (DIFFUSERS,), (DIFFUSERS,)
    ),
    "alpha-ignored": Fault(
        "alpha is not the rank, and diffusers does not read it here", CONVERT, (DIFFUSERS,)
    ),
    "alpha-twice": Fault(
        "alpha tensors and lora_adapter_metadata", CONVERT, (DIFFUSERS,), (DIFFUSERS,)
    ),
    "alpha-hidden": Fault(
        "lora_alpha is not r: only diffusers reads that",
        f"{KOHYA_NAMES}, a FLUX's `--to peft`",
        INTERFACES,
    ),
    "alpha-said": Fault("ss_network_alpha is not the alpha of the tensors", EXPORT),
    "rank-said": Fault("ss_network_dim is not the rank of the tensors", EXPORT),
    # metadata
    "metadata-json": Fault(
        "lora_adapter_metadata is no JSON object", CONVERT, (DIFFUSERS,), (DIFFUSERS,)
    ),
    "metadata-prefix": Fault(
        "lora_adapter_metadata without diffusers' prefix", CONVERT, (DIFFUSERS,), (DIFFUSERS,)
    ),
    "metadata-field": Fault(
        "lora_adapter_metadata has a field that peft has not", CONVERT, (DIFFUSERS,), (DIFFUSERS,)
    ),
    "metadata-rank": Fault(
        "r of lora_adapter_metadata is not the rank", CONVERT, (DIFFUSERS,), (DIFFUSERS,)
    ),
    "metadata-type": Fault(
        "r, lora_alpha or a pattern that is no number there", "write numbers", (DIFFUSERS,),
        (DIFFUSERS,)),
    "metadata-pattern": Fault(
        "a pattern that is none, or too intricate to try", "name the modules", (DIFFUSERS,)),
    "metadata-dora": Fault(
        "use_dora without a magnitude", "take use_dora out", (DIFFUSERS,)),
    "metadata-zero": Fault(
        "lora_alpha is not above zero: only diffusers reads that", "write r", INTERFACES),
    "path": Fault("a path of somebody's machine in the metadata", "take it out before sharing"),
    "secret": Fault("an access token in the metadata", "revoke it, and take it out"),
    "hash": Fault("a hash that does not recompute", f"{EXPORT}, or take the hash out"),
    # values
    "not-finite": Fault("NaN or infinite numbers", "choose an earlier step", EVERYONE),
    "large": Fault("a change as large as the weights themselves", "look at images first"),
    "outlier": Fault("a change far beyond the other modules'", "look at images first"),
    "nothing": Fault("every change is zero", "choose a later step"),
    "partly-nothing": Fault("modules whose change is zero", "nothing, if they were not trained"),
    # against the base
    "base-family": Fault("of another kind of network than the base", "name its own base", EVERYONE),
    "base-module": Fault(
        "modules that the base has not", "name its own base", EVERYONE
    ),
    "base-shape": Fault("sides that the base has not", "name its own base", EVERYONE, (DIFFUSERS,)),
    # readers
    "dropped": Fault(
        "modules that a reader passes over", f"{KOHYA_NAMES}, a FLUX's `--to peft`"
    ),
}  # fmt: skip


class Finding(NamedTuple):
    """One fault of one file, with every place where it stands."""

    code: str
    places: tuple[str, ...]
    detail: str = ""
    """More of the first place."""
    readers: tuple[str, ...] = ()
    """Who is misled, where that hangs on the file."""

    @property
    def fault(self) -> Fault:
        return FAULTS[self.code]

    @property
    def wrong(self) -> tuple[str, ...]:
        return self.readers or self.fault.wrong

    @property
    def severity(self) -> str:
        return "error" if self.wrong else "warning"


Found = tuple[str, str, str]
"""Code, place, detail."""


def gathered(found: list[Found]) -> list[Finding]:
    """One finding a code, in the order of the table."""
    order = list(FAULTS)
    codes = sorted({code for code, _, _ in found}, key=order.index)
    findings = []
    for code in codes:
        own = [(place, detail) for other, place, detail in found if other == code]
        findings.append(Finding(code, tuple(place for place, _ in own), own[0][1]))
    return findings
