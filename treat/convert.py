"""A LoRA file of any naming in; the same changes in PEFT's or kohya's names out, nothing rounded.

diffdoctor convert pytorch_lora_weights.safetensors --to kohya --out for_comfyui.safetensors
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import safetensors.torch
import tyro
from torch import Tensor

import core.config
from core.errors import UserError
from core.storage import check_writable, read_json, write_atomic
from treat.lora_files.checks import checks
from treat.lora_files.content import Content
from treat.lora_files.faults import FAULTS, gathered
from treat.lora_files.file import Damage, check_readable, read_lora_file
from treat.lora_files.names import METADATA
from treat.lora_files.plain import (
    PACKED,
    Plain,
    is_unet,
    kohya_tensors,
    peft_settings,
    peft_tensors,
    read_plain,
)
from treat.lora_files.values import kohya_hashes, values

BLOCKING = (
    "unknown-name", "base-weight", "unknown-role", "no-module", "mixed", "helper", "dora",
    "dora-peft", "extra", "half-A", "half-B", "alpha-alone", "rank", "transposed", "transposed-A",
    "transposed-B", "sides", "empty", "integer", "alpha-shape", "alpha-sign", "alpha-zero",
    "metadata-type", "metadata-pattern", "metadata-dora", "metadata-zero",
)  # fmt: skip
"""Faults for which nobody can say what the file means."""
FAMILIES = {
    "FluxPipeline": "flux",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusionXLPipeline": "sdxl",
    "KolorsPipeline": "sdxl",  # the same UNet, but for what reads the text
    "StableDiffusionPipeline": "unet",
}
TARGETS = {"peft": "diffusers", "kohya": "sd-scripts"}
"""Whose names they are, as ModelSpec says it."""
HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")


class Config(core.config.Config):
    """Write a LoRA file again in other names; every change of a weight stays what it was."""

    file: Annotated[Path, tyro.conf.Positional, core.config.placed("FILE")]
    """A LoRA .safetensors file."""
    to: Literal["peft", "kohya"]
    """PEFT's names (diffusers, and all of FLUX's readers), or kohya's (all of a UNet's)."""
    out: Path
    """The file to write; nothing is overwritten."""
    base: str | None = None
    """Pipeline folder or Hub id, where the file does not tell FLUX from SD 3."""


class Written(NamedTuple):
    """What goes into the file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    said: str
    """Of the conversion, for the person."""


def main(config: Config) -> None:
    """Read, rename, fold, write."""
    out = config.out.expanduser()
    check_out(out)
    check_writable(out.parent)
    content = read(config.file)
    family, layers = told(config.base, content)
    plain = read_plain(content, family, layers)
    written = to_peft(plain) if config.to == "peft" else to_kohya(plain)
    tensors = {name: one.contiguous() for name, one in sorted(written.tensors.items())}
    said = written.metadata
    own = {"modelspec.implementation": TARGETS[config.to], "ss_output_name": out.stem}
    metadata = rehashed(tensors, said | {n: text for n, text in own.items() if n in said})
    write_atomic(out, safetensors.torch.save(tensors, metadata=metadata))
    warn(content)
    print(f"{out}: {len(plain.modules)} modules; {written.said}")


def warn(content: Content) -> None:
    """Say it where numbers are not finite: they are carried over as they are."""
    broken = [place for code, place, _ in values(content) if code == "not-finite"]
    if broken:
        print(f"warning: NaN or infinite numbers in '{broken[0]}', {len(broken)} modules in all")


def check_out(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} is there already: name another --out.")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}: create it first.")


def read(path: Path) -> Content:
    """A file that means something; raises `UserError` with its first fault."""
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"{path} is no file: check the path.")
    check_readable(path)
    try:
        content = Content(read_lora_file(path))
    except Damage as damage:
        cure = FAULTS[damage.code].cure
        raise UserError(f"{path} cannot be read ({damage.what}): {cure}.") from damage
    for finding in gathered(checks(content)):
        if finding.code in BLOCKING:
            fault = FAULTS[finding.code]
            raise UserError(f"{path}, '{finding.places[0]}': {fault.what}; {fault.cure}.")
    if content.texts:
        raise UserError(
            f"{path} teaches a text encoder as well ('{next(iter(content.texts))}'), which is not "
            "converted here: take its tensors out first."
        )
    return content


def told(base: str | None, content: Content) -> tuple[str, int]:
    """The family, and how many layers a level of its UNet has."""
    family, layers = content.family, 2
    if base is not None:
        from base_models.load import locate, read_parts  # diffusers: only where a base is named

        pipeline, folder, _ = read_parts(locate(base, weights=False))
        family = base_family(pipeline, base, content)
        if is_unet(family):
            layers = int(read_json(folder / "unet/config.json").get("layers_per_block", 2))
    if family == "transformer":
        raise UserError(f"{content.file.path} may be of FLUX or of SD 3: name its --base.")
    return family, layers


def base_family(pipeline: str, base: str, content: Content) -> str:
    """The base's family; raises `UserError` where it is unknown or the file is of another."""
    if pipeline not in FAMILIES:
        raise UserError(f"{base} is a {pipeline}: a --base is one of {', '.join(FAMILIES)}.")
    family, own = FAMILIES[pipeline], content.family
    alike = {"sd1", "sd2", "unet"}
    known = own not in ("unet", "transformer") or is_unet(own) != is_unet(family)
    if known and own != family and not {own, family} <= alike:
        raise UserError(f"{content.file.path} is of {own} and {base} of {family}: name its --base.")
    return family


def to_peft(plain: Plain) -> Written:
    tensors, kept = peft_tensors(plain)
    settings = peft_settings(kept)
    metadata = carried(plain.metadata, kept)
    if settings is not None:
        metadata[METADATA] = json.dumps(settings, sort_keys=True)
    return Written(tensors, metadata, told_of(plain, kept))


def to_kohya(plain: Plain) -> Written:
    tensors, kept, packed = kohya_tensors(plain)
    metadata = carried(plain.metadata, kept)
    said = told_of(plain, kept)
    if plain.family == "flux":
        metadata[PACKED] = json.dumps(packed, sort_keys=True)
    if packed:
        rank = max(one.rank for one in plain.modules.values())
        most = max(sum(ranks) for ranks in packed.values())
        said += f"; in {len(packed)} fused modules B is block-diagonal: rank {rank} grows to {most}"
    return Written(tensors, metadata, said)


def told_of(plain: Plain, kept: Plain) -> str:
    """What became of the scales."""
    scaled = [one for one in plain.modules.values() if one.scale != 1]
    if not scaled:
        return "strength 1 as it was"
    if all(one.scale == 1 for one in kept.modules.values()):
        return f"the scales of {len(scaled)} modules folded into B, alpha = rank"
    return "alphas kept, since folding them would round"


def carried(metadata: Mapping[str, str], kept: Plain) -> dict[str, str]:
    """The header's entries that hold of the new file too."""
    said = {n: t for n, t in metadata.items() if n not in (METADATA, PACKED)} | {"format": "pt"}
    ranks = {one.rank for one in kept.modules.values()}
    alphas = {one.alpha for one in kept.modules.values()}
    for name, found in (("ss_network_dim", ranks), ("ss_network_alpha", alphas)):
        if name in said:
            said[name] = str(found.pop()) if len(found) == 1 else "Dynamic"
    return said


def rehashed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Hashes that the old file had, of the new one."""
    said = {name: text for name, text in metadata.items() if name not in HASHES}
    if not any(name in metadata for name in HASHES):
        return said
    training = {name: text for name, text in said.items() if name.startswith("ss_")}
    whole, legacy = kohya_hashes(tensors, training)
    new = dict(zip(HASHES, (whole, legacy, "0x" + whole), strict=True))
    return said | {name: text for name, text in new.items() if name in metadata}
