"""A LoRA file, a treat run or one of its checkpoints in; an adapter by peft's names out.

Inside this project an adapter's tensors are called `<module>.lora_A.weight` and `.lora_B.weight`,
as `treat.lora.lora_state` names them, and its alpha equals its rank: any other scale is folded
into B when the file is read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from base_models.outline import open_outline
from core import checkpoint
from core.config import read_yaml
from core.errors import UserError
from core.storage import write_atomic
from treat.lora import add_lora, check_lora_state, load_lora_state
from treat.lora_files.names import METADATA, TRANSFORMER, UNET, WEIGHTS

STEM = "adapter"
"""The file of a treat checkpoint that holds the LoRA masters."""
PECULIAR = ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora")
"""Settings of peft by which modules have strengths of their own, or more than a pair."""
DEFAULT = 8
"""peft's `r` and `lora_alpha` where nothing is said."""


@dataclass(frozen=True)
class Adapter:
    """Tensors by peft's names with alpha = rank, and where they come from."""

    tensors: Mapping[str, Tensor]
    step: int | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the run that trained it; empty for a plain file."""

    @property
    def rank(self) -> int:
        """The largest rank of any module (diffusers needs one number; all are equal here)."""
        return max(t.shape[0] for name, t in self.tensors.items() if name.endswith("lora_A.weight"))

    @property
    def modules(self) -> list[str]:
        end = ".lora_A.weight"
        return sorted(name.removesuffix(end) for name in self.tensors if name.endswith(end))

    @property
    def digest(self) -> str:
        """sha256 over names and bytes, whatever file they were read from."""
        total = hashlib.sha256()
        for name in sorted(self.tensors):
            total.update(name.encode())
            total.update(safetensors.torch.save({"": self.tensors[name].contiguous()}))
        return total.hexdigest()


def read_adapter(path: Path, step: str = "best") -> Adapter:
    """Open an adapter. `step` (best, last or a number) chooses among a run's checkpoints.

    Raises `UserError` when nothing of the kind lies there, or it is damaged.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return read_file(path)
    if (path / "checkpoints").is_dir():
        return read_run(path, step)
    if (path / "manifest.json").is_file() and path.name.removeprefix("step-").isdigit():
        return read_checkpoint(path.parent, int(path.name.removeprefix("step-")))
    if (path / WEIGHTS).is_file():
        return read_file(path / WEIGHTS)
    raise UserError(
        f"{path} holds no adapter: name a .safetensors file, a run folder of `diffdoctor treat`, "
        "or one of its checkpoints."
    )


def read_file(path: Path) -> Adapter:
    """A LoRA file in PEFT names, its scale folded into B."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings = json.loads(metadata.get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no readable safetensors file: copy it again.") from error
    named = {bare(name): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise UserError(f"{path} has modules under two prefixes: take one of them out.")
    check_names(named, path)
    scale = scale_of(settings, ranks_of(named), path)
    step = metadata.get("diffdoctor.step")
    return Adapter(fold(named, scale), int(step) if step and step.isdigit() else None)


def ranks_of(tensors: Mapping[str, Tensor]) -> set[int]:
    return {len(tensor) for name, tensor in tensors.items() if name.endswith("lora_A.weight")}


def scale_of(settings: Any, ranks: set[int], path: Path) -> float:
    """alpha / rank by peft's settings in a file; `UserError` where one number does not say it.

    A setting that is not given has peft's default, as for diffusers; without any the scale is 1.
    """
    try:
        settings = {bare(name): value for name, value in settings.items()}
        rank, alpha = (float(settings.get(name, DEFAULT)) for name in ("r", "lora_alpha"))
        own = [name for name in PECULIAR if settings.get(name)]
        said = {"r", "lora_alpha"} & settings.keys()
        scale = alpha / rank if said else 1.0
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"the settings in the header of {path} cannot be read: `diffdoctor verify` says more."
        ) from error
    if own:
        raise UserError(
            f"{path} has strengths of its own ({', '.join(own)}): fold them into the weights, "
            f"`diffdoctor convert {path} --to peft --out NEW.safetensors`."
        )
    if said and ranks != {rank}:
        raise UserError(
            f"the header of {path} says rank {rank:g} and its tensors have {sorted(ranks)}: nobody "
            "can say how strong it is meant to be; export it again."
        )
    return scale


def bare(name: str) -> str:
    """Without what diffusers puts before it."""
    return name.removeprefix(TRANSFORMER).removeprefix(UNET)


def read_run(folder: Path, step: str) -> Adapter:
    """One checkpoint of a treat run, with the run's settings."""
    note = folder / "run.json"
    program = said_in(note).get("program") if note.is_file() else "treat"
    if program != "treat":
        raise UserError(
            f"{folder} is a run of '{program}', which has no adapter (or, of a detector, is not "
            "finished): name one of `diffdoctor treat`, or run that command to its end."
        )
    return read_checkpoint(folder / "checkpoints", chosen_step(folder, step))


def chosen_step(folder: Path, step: str) -> int:
    """The step number that best, last or a number means in a run folder."""
    present = checkpoint.steps(folder / "checkpoints")
    if not present:
        raise UserError(f"{folder} has no checkpoint yet: run `diffdoctor treat` to its end.")
    if step == "last":
        return present[-1]
    if step == "best":
        summary = folder / "summary.json"
        ended = said_in(summary) if summary.is_file() else {}
        said = ended.get("best_step")
        if "best_step" in ended and said is None:
            raise UserError(
                f"{folder} has no best step: no look at its images was sound. Treat anew with a "
                "lower --learning-rate or --pixel-weight, or take what became of it: say --step "
                "last, or name one of its checkpoint folders."
            )
        if not isinstance(said, int):
            raise UserError(
                f"{folder} names no best step yet: finish the run, say --step last, or name one of "
                "its checkpoint folders."
            )
        return int(said)
    if not (step.isascii() and step.isdigit()):
        raise UserError(f"no step '{step}': say best, last or one of {present}.")
    return int(step)


def said_in(path: Path) -> dict[str, Any]:
    """A run's note; `UserError` where it is damaged."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: name one of the run's checkpoints.") from error
    return said if isinstance(said, dict) else {}


def read_checkpoint(folder: Path, step: int) -> Adapter:
    saved = checkpoint.load(folder, step)
    if STEM not in saved.tensors:
        raise UserError(f"{saved.path} is no checkpoint of `diffdoctor treat`: choose its run.")
    settings = folder.parent / "config.yaml"
    run = read_yaml(settings) if settings.is_file() else {}
    return Adapter(saved.tensors[STEM], step, run)


def check_names(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `UserError` unless every tensor is half of an A, B pair of matching rank."""
    if not tensors:
        raise UserError(f"{path} holds no tensor: copy it again.")
    for name, tensor in tensors.items():
        a, b = name.replace(".lora_B.", ".lora_A."), name.replace(".lora_A.", ".lora_B.")
        whole = name.endswith((".lora_A.weight", ".lora_B.weight"))
        if not whole or a not in tensors or b not in tensors:
            raise UserError(
                f"{path} has '{name}', which is no pair of lora_A.weight and lora_B.weight: a LoRA "
                f"in other names is rewritten by `diffdoctor convert {path} --to peft --out NEW`."
            )
        if tensor.ndim != 2 or tensors[a].shape[0] != tensors[b].shape[1]:
            raise UserError(f"{path}: the shapes at '{name}' do not belong together: export again.")
        if not tensor.is_floating_point() or not tensor.numel():
            raise UserError(
                f"{path} has {tensor.dtype} of shape {tuple(tensor.shape)} at '{name}', and an "
                "adapter is floating-point numbers of rank 1 or more: export it again."
            )


def fold(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Multiply B by alpha / rank, so that alpha = rank says the same."""
    if scale == 1.0:
        return dict(tensors)
    return {n: t * scale if n.endswith("lora_B.weight") else t for n, t in tensors.items()}


def attach(network: nn.Module, adapter: Adapter) -> None:
    """Put the adapter on a fresh base; `UserError` where the base lacks one of its modules."""
    check_modules(network, adapter)
    add_lora(network, adapter.rank, adapter.modules, seed=0)
    load_lora_state(network, in_full(adapter))


def take_up(network: nn.Module, adapter: Adapter) -> None:
    """Give the adapters that a network carries these weights; `UserError` where they do not fit."""
    load_lora_state(network, in_full(adapter))


@torch.no_grad()
def fuse(network: nn.Module, adapter: Adapter) -> None:
    """Add an adapter to the weights themselves, for good: W + B A, summed in float32."""
    check_modules(network, adapter)
    state = in_full(adapter)
    for name in adapter.modules:
        weight: Any = network.get_submodule(name).weight
        a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        if weight.shape != (b.shape[0], a.shape[1]):
            raise UserError(f"'{name}' has other sides in this base: the adapter is of another.")
        weight.copy_((weight.float() + (b @ a).to(weight.device)).to(weight.dtype))


def check_adapters(
    base: str, rank: int, targets: str, *, start: Adapter | None, beside: Adapter | None
) -> None:
    """Raise `UserError` unless both fit the base and its new adapters; the base's weights rest."""
    if start is None and beside is None:
        return
    if start is not None and start.rank != rank:
        raise UserError(
            f"the adapters to go on from have rank {start.rank}, and --rank is {rank}: "
            f"give --rank {start.rank}."
        )
    outline = open_outline(base, torch.float32)[0]
    if beside is not None:
        fuse(outline.network, beside)
    if start is not None:
        add_lora(outline.network, rank, outline.lora_targets(targets), seed=0)
        check_lora_state(outline.network, start.tensors)


def check_modules(network: nn.Module, adapter: Adapter) -> None:
    """Raise `UserError` unless every module is there, with the adapter's sides."""
    there = dict(network.named_modules())
    for name in adapter.modules:
        weight: Any = getattr(there.get(name), "weight", None)
        if weight is None:
            raise UserError(f"the base has no module '{name}': the adapter is of another base.")
        a, b = (adapter.tensors[f"{name}.lora_{half}.weight"] for half in "AB")
        if weight.shape[:2] != (b.shape[0], a.shape[1]):
            raise UserError(f"'{name}' has other sides in this base: the adapter is of another.")


def pin(path: Path, digest: str) -> None:
    """Note which adapters a folder is made with; `UserError` where the file notes others."""
    note = (json.dumps({"sha256": digest}) + "\n").encode()
    if path.exists() and path.read_bytes() != note:
        raise UserError(
            f"{path.parent} was begun with another adapter: name the checkpoint that it had, or "
            "choose another --out."
        )
    write_atomic(path, note)


def in_full(adapter: Adapter) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in adapter.tensors.items()}
