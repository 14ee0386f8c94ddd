"""A treat run in; a LoRA file that plain diffusers and ComfyUI load, and its card, out.

`pytorch_lora_weights.safetensors` carries PEFT names (`transformer.<module>.lora_A.weight`), the
scale folded into B so that alpha = rank: readers that know no metadata apply it right as well.
For a UNet (`unet.<module>...`) a second file has kohya's names, which ComfyUI reads.
With `merge` a whole pipeline folder comes out instead, the adapter within its weights.
"""

import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from base_models.load import check_base, repository
from core.errors import UserError
from core.hub import check_push, push
from core.storage import alone, check_room, check_writable, write_atomic
from treat import merge, single_file, verify
from treat.adapter import Adapter
from treat.arms import NOTE
from treat.combine import Part, check_bases, combined, read_parts
from treat.export_card import KOHYA, MADE_BY, PICTURE, card, merged_card
from treat.export_header import Labels, filled, header, mixture, provenance
from treat.export_settings import Config
from treat.lora_files.base import Base
from treat.lora_files.names import METADATA, UNET, WEIGHTS
from treat.lora_files.values import LARGE, measured
from treat.lora_kinds import Kind, kind_of, kohya_named

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CARD = "README.md"
STRANGE = ("large", "outlier", "nothing")
"""Findings of `diffdoctor verify` that are told of every export."""
SHEET = "sheet.png"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@\S+)?")


class Told(NamedTuple):
    """What header and card say beside the adapter's own settings."""

    labels: Labels
    figures: dict[str, float]
    pictures: dict[str, bytes]


def main(config: Config) -> None:
    """Read, check, describe, write; then push, if asked."""
    evaluation = config.evaluation.expanduser() if config.evaluation else None
    paths = {"out": config.out.expanduser().resolve(), "evaluation": evaluation}
    config = config.model_copy(update=paths)
    if config.push:
        check_push(config.push)
    if config.single_file and not config.merge:
        raise UserError("a single file holds the whole pipeline: add --merge to --single-file.")
    if config.evaluation and (config.scale != 1 or config.also):
        raise UserError(
            "the evaluation is of the adapter alone at its own strength: leave --evaluation out, "
            "or evaluate what is exported here and name that in a second export."
        )
    parts = read_parts(config.run, config.step, config.scale, config.also)
    if config.base is None:
        check_bases(parts)
    elif Path(config.base).expanduser().exists():
        check_base(Path(config.base).expanduser(), weights=False)
    elif not HUB_ID.fullmatch(config.base):
        raise UserError(
            f"--base {config.base} is no folder here and no Hub id (OWNER/NAME, "
            "perhaps with @REVISION)."
        )
    adapter = combined(parts)
    kind = kind_of(on_base(adapter, config.base), config.architecture)
    labels = Labels(config.title, config.author, config.license, *named_base(config, adapter))
    figures = read_figures(config.evaluation, config.arm, adapter)
    told = Told(labels, figures, read_pictures(config.evaluation))
    if config.merge:
        base = config.base or adapter.run.get("base")
        write_merged(config, base, kind, parts, told)
    else:
        write_lora(config, adapter, kind, parts, told)
    if not config.merge:  # a merged folder is checked whole before it appears
        check_sound(config.out, kind, config.base or adapter.run.get("base"))
    if config.push:
        print(f"pushed to {push(config.out, config.push, f'{config.title}, by diffdoctor export')}")


def on_base(adapter: Adapter, base: str | None) -> Adapter:
    """As if it had been trained on a base that is named."""
    return replace(adapter, run={**adapter.run, "base": base}) if base else adapter


def named_base(config: Config, adapter: Adapter) -> tuple[str, str]:
    """For the card: a Hub id and its revision (empty: none), else the bare name of the folder."""
    base = config.base or str(adapter.run.get("base", "the base model"))
    is_id = HUB_ID.fullmatch(base) and not Path(base).exists()
    name, revision = repository(base) if is_id else (Path(base).name, None)
    if config.base_model:
        return config.base_model, (revision or "") if config.base_model == name else ""
    return name, revision or ""


def read_pictures(evaluation: Path | None) -> dict[str, bytes]:
    sheet = evaluation / SHEET if evaluation else None
    return {PICTURE: sheet.read_bytes()} if sheet and sheet.is_file() else {}


def check_sound(folder: Path, kind: Kind, base: Any) -> None:
    """Raise `UserError` unless `diffdoctor verify` is content; what is only strange is printed.

    Against the base too, where it lies here. Forge has SD 3's names switched off: it does not count
    there.
    """
    readers = [one for one in verify.USUAL if (one, kind.tag) != ("Forge", "stable-diffusion-3")]
    near = isinstance(base, str) and Path(base).expanduser().exists()
    network = Base(base) if near else None
    reports = [verify.examine(path, network, readers) for path in verify.files(folder)]
    if verify.code(reports, tuple(readers)):
        against = f" --base {base}" if near else ""
        raise UserError(
            f"{folder} is written, but not every reader would load it whole: "
            f"`diffdoctor verify {folder}{against}` says why."
        )
    for one in reports[-1].findings:  # the same in every file; WEIGHTS is the last by its name
        if one.code in STRANGE:
            print(f"warning: {one.fault.what} ({one.detail}): {one.fault.cure}")


# The LoRA file


def write_lora(
    config: Config,
    adapter: Adapter,
    kind: Kind,
    parts: list[Part],
    told: Told,
) -> None:
    """The weights are the last to appear."""
    labels, figures, pictures = told
    check_out(config.out, parts)
    tensors = rounded(adapter, DTYPES[config.dtype])
    diffusers_named = {kind.prefix + name: tensor for name, tensor in tensors.items()}
    said = header(labels, adapter, kind, figures, diffusers_named, parts)
    content = safetensors.torch.save(diffusers_named, metadata=said)
    text = card(labels, adapter, kind, figures, parts, pictured=bool(pictures))
    beside = {CARD: text.encode(), **pictures}
    twice = len(content) * (2 if kind.prefix == UNET else 1)
    check_room(config.out, twice + sum(map(len, beside.values())))
    config.out.mkdir(parents=True, exist_ok=True)
    with alone(config.out / ".export.lock", f"another export is writing {config.out}: wait."):
        replaced = (config.out / WEIGHTS).is_file()
        clear(config.out)
        for name, text in beside.items():
            write_atomic(config.out / name, text)
        if kind.prefix == UNET:
            named = kohya_named(tensors)
            said = header(labels, adapter, kind, figures, named, parts, KOHYA)
            said.pop(METADATA)  # beside the alphas it would make diffusers refuse the file
            said["modelspec.implementation"] = "sd-scripts"
            write_atomic(config.out / KOHYA, safetensors.torch.save(named, metadata=said))
        write_atomic(config.out / WEIGHTS, content)
    written = f"{config.out / WEIGHTS}" + (f" and {KOHYA}" if kind.prefix == UNET else "")
    step = "" if adapter.step is None else f" of step {adapter.step}"
    instead = ", in place of an earlier export" if replaced else ""
    print(f"{written}: {len(tensors) // 2} modules{step}, {len(content)} bytes{instead}")


def clear(folder: Path) -> None:
    """Remove an earlier export's files: old weights under a new card would be a lie."""
    for name in (WEIGHTS, KOHYA, PICTURE):
        (folder / name).unlink(missing_ok=True)
    for left in folder.glob(".*.tmp"):  # by an export that was stopped while it wrote
        left.unlink()


def check_out(folder: Path, parts: list[Part]) -> None:
    """Refuse a folder with anything but an earlier export, and one that an adapter is read from."""
    check_writable(folder)
    found = sorted(path.name for path in folder.glob("[!.]*"))
    strange = [name for name in found if name not in (WEIGHTS, KOHYA, CARD, PICTURE)]
    readme = folder / CARD
    own = readme.is_file() and MADE_BY in readme.read_text(errors="replace")
    if found and not own:  # our names alone do not make it ours: WEIGHTS is diffusers' own
        strange = found
    if strange:
        raise UserError(f"{folder} holds other files ('{strange[0]}'): name an empty folder.")
    for part in parts:
        if Path(part.path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{part.path} lies in {folder} and would be lost: name another --out.")


def rounded(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors, rounded once from the masters, contiguous; `UserError` if not finite."""
    tensors = {n: adapter.tensors[n].to(dtype).contiguous() for n in sorted(adapter.tensors)}
    lost = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if lost:
        raise UserError(
            f"'{lost[0]}' is not finite, as are {len(lost)} of {len(tensors)} tensors: choose an "
            "earlier --step, or a smaller --scale."
        )
    return tensors


def read_figures(folder: Path | None, arm: str, adapter: Adapter) -> dict[str, float]:
    """The base's (`before`) and the adapter's (`after`) artifact frequency of an evaluation.

    Raises `UserError` where the arm was drawn with another adapter.
    """
    if folder is None:
        return {}
    try:
        arms = json.loads((folder / "summary.json").read_text())["arms"]
        pair = {"before": arms["base"], "after": arms[arm]}
        found = {name: float(one["artifact_frequency"]) for name, one in pair.items()}
        drawn = str(json.loads((folder / "images" / arm / NOTE).read_text())["sha256"])
        if not all(map(math.isfinite, found.values())):
            raise ValueError("a frequency is no number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no finished evaluation with an arm '{arm}': run `diffdoctor evaluate`, "
            "or name the arm with --arm."
        ) from error
    if not drawn.startswith(adapter.digest):  # after it may stand what was beside
        raise UserError(
            f"the arm '{arm}' of {folder} was drawn with another adapter or another step: evaluate "
            "the one that is exported, or name its --arm."
        )
    return found


# The merged pipeline


def write_merged(
    config: Config,
    base: Any,
    kind: Kind,
    parts: list[Part],
    told: Told,
) -> None:
    """The base's folder with the sum in its network, whole or not at all."""
    if not isinstance(base, str):  # what a stranger's config.yaml says may be anything
        raise UserError(f"{config.run} does not say what to merge it into: name the --base.")
    labels, figures, pictures = told
    check_beside(parts)
    dtype = DTYPES[config.dtype]
    opened = merge.open_base(base, kind.prefix.removesuffix("."), parts)
    need = merge.size(opened, dtype)
    if config.single_file:
        single_file.check(opened.folder)
        need += merge.network_size(opened, dtype) + single_file.others_size(opened.folder)
    merge.check_out(config.out, need)
    said = filled({**provenance(parts[0].adapter, figures), **mixture(parts)})
    single = f"{config.out.resolve().name}.safetensors" if config.single_file else ""
    further = partial(single_file.write, name=single, metadata=said) if single else None
    shown = bool(pictures)
    text = merged_card(labels, kind, figures, parts, config.dtype, single, pictured=shown)
    extra = {**pictures, CARD: text.encode()}
    total = merge.write(opened, config.out, parts, dtype, said, extra, further)
    lost = merge.left_out(opened)
    more = f", and {single}" if single else ""
    strong = [
        module
        for part in parts
        for module in part.adapter.modules
        if measured(*merge.halves(part, module), part.weight).size > LARGE
    ]
    if strong:
        print(f"warning: the change of '{strong[0]}' is larger than weights are, and of "
              f"{len(strong)} modules in all: look at images before you pass it on")  # fmt: skip
    more += f"; left out, with the untreated network in them: {', '.join(lost)}" if lost else ""
    print(f"{config.out}: a {kind.pipeline}, {total} bytes of {opened.network}{more}")


def check_beside(parts: list[Part]) -> None:
    """Raise `UserError` where a part was trained on a base with another adapter that is missing."""
    there = {Path(part.path).resolve() for part in parts}
    for part in parts:
        other = part.adapter.run.get("beside")
        if other and Path(str(other)).resolve() not in there:
            raise UserError(
                f"{part.path} was trained beside {other}, which belongs into the weights as well: "
                f"add --also {other}=1."
            )
