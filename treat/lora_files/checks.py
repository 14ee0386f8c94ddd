"""What a LoRA file says of itself in; the faults of names, shapes, dtypes, alphas, metadata out.

No weight is looked at here: that is `treat.lora_files.values`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from treat.lora_files.content import Content, misread
from treat.lora_files.faults import Found
from treat.lora_files.names import METADATA, UNKNOWN, Module, meant

WEIGHTS, ODD = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"), ("F64", "F8_E4M3", "F8_E5M2")
PATH = re.compile(r"""(?:^|[\s"'=(\[,])(?:/(?:[^/\s"',]+/)+|~/|[A-Za-z]:\\)[^\s"',]*""")
"""An absolute path of two parts at least; a web address has its slashes after a colon."""
SECRET = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,})")
UNET_KOHYA = ("kohya-unet", "kohya-sgm")
FLUX_KOHYA = ("kohya-flux", "comfy-flux", "onetrainer-flux")
NO_ALPHA = ("peft-unet", "old-unet")


def checks(content: Content) -> list[Found]:
    """The ladder above the header, without the weights."""
    return [
        *names(content),
        *(found for place, one in content.all.items() for found in module(content, place, one)),
        *alphas(content),
        *adapter_metadata(content),
        *metadata(content),
    ]


def names(content: Content) -> Iterator[Found]:
    for place, one in content.all.items():
        weights = one.roles.keys() & {"A", "B"}
        if one.naming == UNKNOWN:
            for name in one.roles.values():
                yield "unknown-name", name, ""
        elif one.stray:
            near = meant(place)
            own = re.search(r"\.(weight|bias)$", place) and "lora" not in place
            yield ("base-weight" if own else "unknown-role"), place, near and f"{near} is near"
        elif not weights and "alpha" in one.roles:
            yield "alpha-alone", one.roles["alpha"], ""
        if one.naming == "peft-bare":
            yield "prefix", place, ""
        if one.naming == "helper-flux":
            yield "helper", place, ""
        if any(".default." in name for name in one.roles.values()):
            yield "adapter-name", place, ""
        if "DoRA" in one.roles:
            name = one.roles["DoRA"]
            yield ("dora" if name.endswith("dora_scale") else "dora-peft"), name, ""
        for role in ("mid", "bias", "difference"):
            if role in one.roles:
                yield "extra", one.roles[role], role
    if not content.denoiser and not content.texts:
        yield "no-module", "file", ""
    if len(content.namings) > 1 or _texts_of_another(content):
        first = content.namings or [UNKNOWN]
        other = [
            p
            for p, one in content.all.items()
            if one.naming not in (first[0], UNKNOWN) and not one.stray
        ]
        yield "mixed", (other or ["file"])[0], " and ".join(first)


def _texts_of_another(content: Content) -> bool:
    """Text encoders in PEFT names beside a denoiser in kohya's, or the other way round."""
    kohya = {place.startswith("lora_te") for place in content.texts}
    denoiser = {one.naming.startswith(("kohya", "onetrainer")) for one in content.denoiser.values()}
    return bool(kohya and denoiser) and kohya != denoiser


def module(content: Content, place: str, one: Module) -> Iterator[Found]:
    """Pairs, shapes and dtypes."""
    halves = {role: one.roles[role] for role in "AB" if role in one.roles}
    if one.naming != UNKNOWN and len(halves) == 1:
        yield ("half-A" if "B" in halves else "half-B"), next(iter(halves.values())), ""
    entries = {role: content.file.entries[name] for role, name in halves.items()}
    for role, entry in entries.items():
        if entry.dtype not in WEIGHTS:
            yield "integer", halves[role], entry.dtype
        elif entry.dtype in ODD:
            yield "odd-dtype", halves[role], entry.dtype
        if 0 in entry.shape:
            yield "empty", halves[role], str(list(entry.shape))
        elif len(entry.shape) not in (2, 4):
            yield "sides", halves[role], str(list(entry.shape))
    if len(entries) == 2:
        if entries["A"].dtype != entries["B"].dtype:
            yield "dtypes", place, f"{entries['A'].dtype} and {entries['B'].dtype}"
        fault = misfit(entries["A"].shape, entries["B"].shape)
        if fault:
            yield fault, place, f"A {list(entries['A'].shape)}, B {list(entries['B'].shape)}"


def misfit(a: tuple[int, ...], b: tuple[int, ...]) -> str | None:
    """What is wrong between the shapes of A, rank by inputs, and B, outputs by rank."""
    if len(a) not in (2, 4) or len(b) != len(a) or 0 in (*a, *b):
        return "rank" if len(a) in (2, 4) and len(b) in (2, 4) and 0 not in (*a, *b) else None
    if b[2:] not in ((), (1, 1)):
        return "sides"
    if len(a) == 2 and a[0] != b[1] or len(a) == 2 and a[0] > max(a[1], b[0]):
        if a[1] == b[0] < min(a[0], b[1]):
            return "transposed"
        if a[1] == b[1] < a[0]:
            return "transposed-A"
        if a[0] == b[0] < b[1]:
            return "transposed-B"
    return "rank" if a[0] != b[1] else None


def alphas(content: Content) -> Iterator[Found]:
    naming, peft = content.naming, content.naming.startswith("peft")
    for place, one in content.all.items():
        name = one.roles.get("alpha")
        if name is None or not one.whole:
            continue
        if content.size(name) != 1:
            yield "alpha-shape", name, str(list(content.shape(name)))
            continue
        alpha = content.alphas[place]
        if content.file.entries[name].dtype not in WEIGHTS:
            yield ("alpha-integer-peft" if peft else "alpha-integer"), name, ""
        if not math.isfinite(alpha) or alpha < 0:
            yield "alpha-sign", name, str(alpha)
        elif alpha == 0:
            yield "alpha-zero", name, ""
        elif naming == "down-transformer" and alpha != content.rank(place):
            yield "alpha-ignored", name, f"{alpha:g} of rank {content.rank(place)}"
    own = {place: content.alphas[place] for place in content.denoiser if place in content.alphas}
    yield from _among(content, own)


def _among(content: Content, own: dict[str, float]) -> Iterator[Found]:
    """What the alphas of the denoiser are to one another, and to the header."""
    if not own:
        return
    naming, first = content.naming, next(iter(own))
    values = set(own.values())
    without = [place for place in content.denoiser if place not in own]
    if without and naming in UNET_KOHYA and values != {content.rank(without[0])}:
        yield "alpha-partial", without[0], ""
    elif without and naming == "onetrainer-flux":
        yield "alpha-partial", without[0], "diffusers wants every alpha there"
    elif naming == "peft-transformer" and content.family != "sd3":
        for place in without:
            if content.first_alpha != content.rank(place):
                yield "alpha-partial", place, f"diffusers takes {content.first_alpha:g} there too"
    elif len(values) > 1 and naming in UNET_KOHYA:
        yield "alpha-differs", first, f"{min(values):g} to {max(values):g}"
    if naming in NO_ALPHA or content.family == "sd3":
        yield "alpha-peft", first, ""
    if METADATA in content.file.metadata and naming not in FLUX_KOHYA:
        yield "alpha-twice", first, ""
    said = _number(content.file.metadata.get("ss_network_alpha"))
    if said is not None and len(values) == 1 and said not in values:
        yield "alpha-said", "ss_network_alpha", f"{said:g}, and the tensors say {own[first]:g}"


def adapter_metadata(content: Content) -> Iterator[Found]:
    """diffusers' own entry."""
    said = content.file.metadata.get("ss_network_dim")
    if content.ranks and _number(said) is not None and _number(said) not in content.ranks:
        yield "rank-said", "ss_network_dim", f"{said}, and the tensors say {sorted(content.ranks)}"
    if len(content.ranks) > 1 and content.naming not in FLUX_KOHYA:  # every alpha is read there
        yield "ranks-differ", "file", f"{sorted(content.ranks)}"
    if METADATA not in content.file.metadata or not content.denoiser:
        return
    if content.adapter_metadata is None:
        yield "metadata-json", METADATA, ""
        return
    if not content.settings and content.naming.startswith(("peft", "old", "down")):
        yield "metadata-prefix", METADATA, ""
        return
    for name in sorted(content.settings.keys() - known_settings()):
        yield "metadata-field", METADATA, name
    yield from _scale_said(content)


@functools.cache
def known_settings() -> set[str]:
    """Of the installed peft."""
    from peft import LoraConfig  # seconds: only where a file has its entry

    return {field.name for field in dataclasses.fields(LoraConfig)}


def _scale_said(content: Content) -> Iterator[Found]:
    fault = misread(content.settings) if content.settings else None
    if fault:
        yield fault[0], METADATA, fault[1]
        return
    if not content.settings:
        return
    dora = any("DoRA" in one.roles for one in content.all.values())
    if content.settings.get("use_dora") and not dora:
        yield "metadata-dora", METADATA, ""
    for place in content.denoiser:
        rank, own = content.said_rank(place), content.rank(place)
        if rank != own:
            yield "metadata-rank", METADATA, f"{rank} for '{place}', and the tensors say {own}"
            return
    scales = {place: content.said_scale(place) for place in content.denoiser}
    other = [place for place, scale in scales.items() if scale not in (None, 1.0)]
    weak = [place for place in other if (scales[place] or 0.0) <= 0]
    if weak and not content.alphas:
        yield "metadata-zero", weak[0], f"{scales[weak[0]]:g}"
    elif other and not content.alphas:
        scale = scales[other[0]] or 0.0
        yield "alpha-hidden", other[0], f"diffusers {scale:g}, the others 1"


def metadata(content: Content) -> Iterator[Found]:
    """What should not be shared."""
    for name, text in content.file.metadata.items():
        if PATH.search(text):
            yield "path", name, ""
        if SECRET.search(text):
            yield "secret", name, ""


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
