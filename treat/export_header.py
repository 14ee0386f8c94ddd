"""An adapter and what is known of it in; the header of its LoRA file, all strings, out."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from detector.storage import digest as detector_digest
from treat.adapter import Adapter
from treat.combine import KEPT, Part
from treat.lora_files.names import METADATA, WEIGHTS
from treat.lora_files.values import kohya_hashes
from treat.lora_kinds import Kind


class Labels(NamedTuple):
    """What a person calls the adapter; the header and the card repeat it."""

    title: str
    author: str
    license: str
    base: str
    """Hub id, or name of the folder, of the base model."""
    revision: str = ""
    """Of a Hub id, where one was named."""


def header(
    labels: Labels,
    adapter: Adapter,
    kind: Kind,
    figures: Mapping[str, float],
    tensors: Mapping[str, Tensor],
    parts: Sequence[Part] = (),
    file_name: str = WEIGHTS,
) -> dict[str, str]:
    """What readers find before the tensors: all strings, no path, nothing secret."""
    training = kohya(adapter, kind, file_name)
    whole, legacy = kohya_hashes(tensors, filled(training))
    return filled(
        {
            "format": "pt",
            METADATA: json.dumps(lora_metadata(adapter, kind), sort_keys=True),
            **modelspec(labels, adapter, kind, whole, parts),
            **training,
            "sshs_model_hash": whole,
            "sshs_legacy_hash": legacy,
            **provenance(adapter, figures),
            **mixture(parts),
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


def modelspec(
    labels: Labels, adapter: Adapter, kind: Kind, whole: str, parts: Sequence[Part]
) -> dict[str, Any]:
    """ModelSpec 1.0.1, which model managers read."""
    sides = [adapter.run.get(name) for name in ("width", "height")]
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": kind.modelspec,
        "modelspec.implementation": "diffusers",
        "modelspec.title": labels.title,
        "modelspec.author": labels.author,
        "modelspec.date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "modelspec.description": "Trained against a frozen artifact detector.",
        "modelspec.resolution": "x".join(map(str, sides)) if all(sides) else None,
        "modelspec.license": labels.license,
        "modelspec.usage_hint": f"Always on, strength 1.0; no trigger word.{beside(parts)}",
        "modelspec.tags": "artifact removal, diffdoctor",
        "modelspec.hash_sha256": "0x" + whole,
    }


MODULES = {"flux": "networks.lora_flux", "stable-diffusion-3": "networks.lora_sd3"}
"""kohya's modules by a kind's tag; the UNets have one for all."""


def kohya(adapter: Adapter, kind: Kind, file_name: str) -> dict[str, Any]:
    """What kohya's tools and the web interfaces after them read."""
    return {
        "ss_network_dim": adapter.rank,
        "ss_network_alpha": float(adapter.rank),
        "ss_network_module": MODULES.get(kind.tag, "networks.lora"),
        "ss_base_model_version": kind.kohya_version,
        "ss_learning_rate": adapter.run.get("learning_rate"),
        "ss_steps": adapter.step,
        "ss_seed": adapter.run.get("seed"),
        "ss_output_name": file_name.removesuffix(".safetensors"),
    }


def provenance(adapter: Adapter, figures: Mapping[str, float]) -> dict[str, Any]:
    """Which run and detectors it comes from, by digests."""
    named = [adapter.run.get("detector"), *(adapter.run.get("further_detectors") or ())]
    detectors = [Path(folder) for folder in named if folder and Path(folder).is_dir()]
    whole = not set(adapter.run) <= set(KEPT)  # a sum knows some settings only, a file none
    settings = json.dumps(dict(adapter.run), sort_keys=True).encode()
    return {
        "diffdoctor.step": adapter.step,
        "diffdoctor.config_sha256": digest(settings) if whole else None,
        "diffdoctor.detector_sha256": ",".join(map(detector_digest, detectors)),
        "diffdoctor.artifact_frequency_before": figures.get("before"),
        "diffdoctor.artifact_frequency_after": figures.get("after"),
    }


def mixture(parts: Sequence[Part]) -> dict[str, Any]:
    """Which adapters were added up, at which weights; nothing for one at its own strength."""
    if all(part.weight == 1 for part in parts) and len(parts) < 2:
        return {}
    said = [
        {"sha256": part.adapter.digest, "step": part.adapter.step, "weight": part.weight}
        for part in parts
    ]
    return {"diffdoctor.parts": json.dumps(said, sort_keys=True)}


def beside(parts: Sequence[Part]) -> str:
    """What has to be loaded with it: adapters beside which a part was trained, and no other part.

    The names of files only, never where they lie.
    """
    there = {str(Path(part.path).resolve()) for part in parts}
    named = [str(part.adapter.run.get("beside") or "") for part in parts]
    lost = [Path(one).name for one in named if one and str(Path(one).resolve()) not in there]
    return f" Load it with {lost[0]}, beside which it was trained." if lost else ""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
