"""A treat run in; a LoRA file that plain diffusers and ComfyUI load, and its card, out.

`pytorch_lora_weights.safetensors` carries PEFT names (`transformer.<module>.lora_A.weight`), the
scale folded into B so that alpha = rank: readers that know no metadata apply it right as well.
For a UNet (`unet.<module>...`) a second file has kohya's names, which ComfyUI reads.
"""

import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import yaml
from torch import Tensor

from core.config import Config as BaseConfig
from core.errors import UserError
from core.storage import write_atomic
from detector.storage import digest as detector_digest
from treat.adapter import METADATA, UNET, WEIGHTS, Adapter, read_adapter
from treat.lora_kinds import Architecture, Kind, kind_of, kohya_named

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
KOHYA = "comfyui_lora.safetensors"
"""A UNet's adapter by kohya's names."""
CARD = "README.md"
SHEET, PICTURE = "sheet.png", "before_after.png"
LEGACY = slice(0x100000, 0x110000)
"""The bytes that kohya's first hash reads."""


class Config(BaseConfig):
    """Write an adapter as a LoRA file for downstream pipelines."""

    run: Path
    """Run folder of `diffdoctor treat`, one of its checkpoints, or a LoRA file."""
    out: Path
    """Folder for the file and its card; nothing else may stand in it."""
    step: str = "best"
    """Which checkpoint of a run folder: best, last or a number."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of the file: half the size, or the masters themselves."""
    title: str = "DiffDoctor adapter"
    """Shown by model managers."""
    author: str = ""
    """Shown by model managers."""
    license: str = ""
    """Of the adapter; the base model's own holds besides."""
    architecture: Architecture | None = None
    """What the base is (default: what the run's base says; of FLUX, schnell)."""
    base_model: str = ""
    """Hub id for the card (default: the folder's name of the run's base)."""
    evaluation: Path | None = None
    """Run folder of `diffdoctor evaluate`: figures and pictures for the header and the card."""
    arm: str = "adapter"
    """The name that this adapter has there."""


def main(config: Config) -> None:
    """Read, convert, describe, commit; the weights are the last to appear."""
    adapter = read_adapter(config.run, config.step)
    kind = kind_of(adapter, config.architecture)
    check_out(config.out)
    figures = read_figures(config.evaluation, config.arm)
    tensors = rounded(adapter, DTYPES[config.dtype])
    diffusers_named = {kind.prefix + name: tensor for name, tensor in tensors.items()}
    said = header(config, adapter, kind, figures, diffusers_named)
    content = safetensors.torch.save(diffusers_named, metadata=said)
    config.out.mkdir(parents=True, exist_ok=True)
    if config.evaluation and (config.evaluation / SHEET).is_file():
        write_atomic(config.out / PICTURE, (config.evaluation / SHEET).read_bytes())
    write_atomic(config.out / CARD, card(config, adapter, kind, figures).encode())
    if kind.prefix == UNET:
        named = kohya_named(tensors)
        said = header(config, adapter, kind, figures, named)
        said.pop(METADATA)  # beside the alphas it would make diffusers refuse the file
        said |= {
            "ss_output_name": KOHYA.removesuffix(".safetensors"),
            "modelspec.implementation": "sd-scripts",
        }
        write_atomic(config.out / KOHYA, safetensors.torch.save(named, metadata=said))
    write_atomic(config.out / WEIGHTS, content)
    written = f"{config.out / WEIGHTS}" + (f" and {KOHYA}" if kind.prefix == UNET else "")
    print(f"{written}: {len(tensors) // 2} modules, {len(content)} bytes")


def check_out(folder: Path) -> None:
    """Refuse a folder with anything but an earlier export: nothing of others is overwritten."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: name a folder with --out.")
    if folder.is_dir():
        ours = (WEIGHTS, KOHYA, CARD, PICTURE)
        strange = sorted(path.name for path in folder.iterdir() if path.name not in ours)
        if strange:
            raise UserError(f"{folder} holds other files ('{strange[0]}'): name an empty folder.")


def rounded(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors, rounded once from the masters, contiguous."""
    return {name: adapter.tensors[name].to(dtype).contiguous() for name in sorted(adapter.tensors)}


def read_figures(folder: Path | None, arm: str) -> dict[str, float]:
    """The base's (`before`) and the adapter's (`after`) artifact frequency of an evaluation."""
    if folder is None:
        return {}
    try:
        arms = json.loads((folder / "summary.json").read_text())["arms"]
        pair = {"before": arms["base"], "after": arms[arm]}
        return {name: float(one["artifact_frequency"]) for name, one in pair.items()}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} is no finished evaluation with an arm '{arm}': run `diffdoctor evaluate`, "
            "or name the arm with --arm."
        ) from error


# Header


def header(
    config: Config,
    adapter: Adapter,
    kind: Kind,
    figures: Mapping[str, float],
    tensors: Mapping[str, Tensor],
) -> dict[str, str]:
    """What readers find before the tensors: all strings, no path, nothing secret."""
    training = kohya(adapter, kind)
    # kohya's hashes are taken over a file that carries the training entries only.
    file = safetensors.torch.save(dict(tensors), metadata=filled(training))
    whole = digest(file[8 + int.from_bytes(file[:8], "little") :])
    return filled(
        {
            "format": "pt",
            METADATA: json.dumps(lora_metadata(adapter, kind), sort_keys=True),
            **modelspec(config, adapter, kind, whole),
            **training,
            "sshs_model_hash": whole,
            "sshs_legacy_hash": digest(file[LEGACY])[:8],
            **provenance(adapter, figures),
        }
    )


def filled(values: Mapping[str, Any]) -> dict[str, str]:
    """The entries that are known, as strings."""
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def lora_metadata(adapter: Adapter, kind: Kind) -> dict[str, Any]:
    """What diffusers makes its LoraConfig of: only fields that every version of peft knows."""
    settings = {
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "target_modules": adapter.modules,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    return {kind.prefix + name: value for name, value in settings.items()}


def modelspec(config: Config, adapter: Adapter, kind: Kind, whole: str) -> dict[str, Any]:
    """ModelSpec 1.0.1, which model managers read."""
    sides = [adapter.run.get(name) for name in ("width", "height")]
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": kind.modelspec,
        "modelspec.implementation": "diffusers",
        "modelspec.title": config.title,
        "modelspec.author": config.author,
        "modelspec.date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "modelspec.description": "Trained against a frozen artifact detector.",
        "modelspec.resolution": "x".join(map(str, sides)) if all(sides) else None,
        "modelspec.license": config.license,
        "modelspec.usage_hint": f"Always on, strength 1.0; no trigger word.{beside(adapter)}",
        "modelspec.tags": "artifact removal, diffdoctor",
        "modelspec.hash_sha256": "0x" + whole,
    }


MODULES = {"flux": "networks.lora_flux", "stable-diffusion-3": "networks.lora_sd3"}
"""kohya's modules by a kind's tag; the UNets have one for all."""


def kohya(adapter: Adapter, kind: Kind) -> dict[str, Any]:
    """What kohya's tools and the web interfaces after them read."""
    return {
        "ss_network_dim": adapter.rank,
        "ss_network_alpha": float(adapter.rank),
        "ss_network_module": MODULES.get(kind.tag, "networks.lora"),
        "ss_base_model_version": kind.kohya_version,
        "ss_learning_rate": adapter.run.get("learning_rate"),
        "ss_steps": adapter.step,
        "ss_seed": adapter.run.get("seed"),
        "ss_output_name": WEIGHTS.removesuffix(".safetensors"),
    }


def provenance(adapter: Adapter, figures: Mapping[str, float]) -> dict[str, Any]:
    """Which run and detectors it comes from, by digests."""
    named = [adapter.run.get("detector"), *(adapter.run.get("further_detectors") or ())]
    detectors = [Path(folder) for folder in named if folder and Path(folder).is_dir()]
    settings = json.dumps(dict(adapter.run), sort_keys=True).encode()
    return {
        "diffdoctor.step": adapter.step,
        "diffdoctor.config_sha256": digest(settings) if adapter.run else None,
        "diffdoctor.detector_sha256": ",".join(map(detector_digest, detectors)),
        "diffdoctor.artifact_frequency_before": figures.get("before"),
        "diffdoctor.artifact_frequency_after": figures.get("after"),
    }


def beside(adapter: Adapter) -> str:
    """What has to be loaded with it, if it was trained beside another adapter."""
    other = adapter.run.get("beside")
    name = Path(str(other)).name
    return f" Load it with {name}, beside which it was trained." if other else ""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Card


def card(config: Config, adapter: Adapter, kind: Kind, figures: Mapping[str, float]) -> str:
    """The README of a model hub: what it is, how to load it, what was measured."""
    base = config.base_model or Path(str(adapter.run.get("base", "the base model"))).name
    front = {
        "base_model": base,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        **({"license": config.license} if config.license else {}),
        "tags": ["text-to-image", "diffusers", "lora", kind.tag, "template:sd-lora"],
    }
    measured = ""
    if figures:
        before, after = figures["before"], figures["after"]
        measured = (
            f"\nImages with artifacts, same prompts and seeds: {before:.1%} before, "
            f"{after:.1%} after.\n"
        )
        measured += f"\n![before and after]({PICTURE})\n"
    file = KOHYA if kind.prefix == UNET else WEIGHTS
    text = CARD_TEXT.format(
        title=config.title,
        base=base,
        rank=adapter.rank,
        measured=measured,
        beside=beside(adapter),
        pipeline=kind.pipeline,
        # ComfyUI itself loads no Kolors.
        comfyui=COMFYUI_TEXT.format(file=file) if kind.kohya_version else "",
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{text}"


CARD_TEXT = """# {title}

A LoRA (rank {rank}) for {base}, trained with DiffDoctor to make fewer artifacts: a frozen
pixel-level artifact detector gives the gradient. Always on, strength 1.0; no trigger word.{beside}
{measured}
## diffusers

```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("{base}")
pipeline.load_lora_weights("FOLDER_OF_THIS_FILE", weight_name="pytorch_lora_weights.safetensors")
```
{comfyui}"""
COMFYUI_TEXT = """
## ComfyUI

Put `{file}` into `models/loras`, add the node *Load LoRA* after the
model loader, and leave both strengths at 1.0.
"""
