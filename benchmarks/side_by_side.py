"""Tasks in, each measured in a process of its own; a table of ratios, and what was reached, out."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

import core.config
from core.errors import UserError
from core.seeds import mix
from treat.update import NOISE

ROOT = Path(__file__).resolve().parents[1]
FOUND, GRADIENT = "found.json", "gradient.safetensors"
SEED = 0
OURS = "benchmarks.our_step"


class Task(core.config.Config):
    """One variant of a step, for a process of its own."""

    folder: Path
    """Where `FOUND` and, if wanted, `GRADIENT` are written."""
    base: Path
    lora: Path
    detector: Path
    side: int = Field(ge=8)
    """Pixels."""
    steps: int = Field(ge=1)
    """T."""
    last: int = Field(ge=1)
    """K."""
    rank: int = Field(ge=1)
    repeats: int = Field(ge=0)
    """Steps that are timed, after one that is not."""
    peer: Path | None = None
    """The other's code."""
    recompute: bool = False
    checkpoint_blocks: bool = False
    checkpoint_decoder: bool = False
    two_pass_decode: bool = False
    detector_grid: bool = False
    """Take the loss on the detector's own grid, not on the image's."""


@dataclass(frozen=True)
class Variant:
    """A row: how our step is taken, and what share of the peer's it may take."""

    name: str
    last: int
    options: Mapping[str, bool]
    cpu: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Rival:
    """Another trainer: its name, our module that runs it, where its code and packages are."""

    name: str
    module: str
    path: Path
    packages: tuple[Path, ...]

    def check(self, files: Sequence[str], packages: Sequence[str], cure: str) -> None:
        """Raise `UserError` unless its code and what it imports are there."""
        for file in files:
            if not (self.path / file).is_file():
                raise UserError(f"{self.path} is no checkout of {self.name} (no {file}): {cure}")
        where = [*sys.path, *map(str, self.packages)]
        lost = [name for name in packages if PathFinder.find_spec(name, where) is None]
        if lost:
            raise UserError(
                f"{self.name} imports {', '.join(lost)}: `pip install --no-deps --target DIR "
                f"{' '.join(lost)}`, and name DIR with --packages."
            )


def noise_seed(step: int) -> int:
    """Of the only image of a step, counted from 1; as `treat.update.Places` has it."""
    return mix(SEED, NOISE, step, 0)


def measure(module: str, task: Task, paths: Sequence[Path] = ()) -> dict[str, Any]:
    """Run a task in a fresh process with one thread; `paths` come last where modules are sought."""
    task.folder.mkdir(parents=True)
    settings = task.folder / "task.yaml"
    settings.write_text(core.config.to_yaml(task))
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), *map(str, paths)]
    extra = {"PYTHONPATH": os.pathsep.join(search), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # One GPU to the release's settings, none to torch.
    extra |= {"CUDA_VISIBLE_DEVICES": "-1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", str(settings)],
        cwd=task.folder,
        env=os.environ | extra,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        (task.folder / "stderr.txt").write_text(done.stderr)
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{module} failed ({last}); run it by itself to see more: {settings}.")
    return json.loads((task.folder / FOUND).read_text())


def compare(
    peer: Rival, task: Task, variants: Sequence[Variant], further: Mapping[str, Task]
) -> dict[str, Any]:
    """Rows by name, the peer's first; what was asked; and the gradients' agreement with the peer's.

    `task` is what all have in common; `further` are tasks of ours whose gradient alone is wanted.
    """
    theirs = task.model_copy(update={"folder": task.folder / "peer", "peer": peer.path})
    rows = {peer.name: announced(peer.name, measure(peer.module, theirs, peer.packages))}
    agreements: dict[str, Any] = {}
    for number, variant in enumerate(variants):
        folder = task.folder / f"variant-{number}"
        changes = {"folder": folder, "last": variant.last, **variant.options}
        rows[variant.name] = announced(variant.name, measure(OURS, task.model_copy(update=changes)))
        if variant.last == task.last:
            agreements[variant.name] = agreement(folder, theirs.folder)
    for name, other in further.items():
        measure(OURS, other)
        agreements[name] = agreement(other.folder, theirs.folder)
    asked = verdicts(peer.name, rows, variants)
    return {"rows": rows, "asked": asked, "gradients": agreements}


def announced(name: str, row: dict[str, Any]) -> dict[str, Any]:
    print(f"{name}: {row['cpu']:.2f} s, {row['peak']:.0f} MB", flush=True)
    return row


def report(peer: str, found: Mapping[str, Any]) -> str:
    """The table, what was reached, and how near the gradients are."""
    lines = [table(peer, found["rows"]), *map(told, found["asked"])]
    for name, row in found["gradients"].items():
        near = ", ".join(f"{what} {value:.3g}" for what, value in row.items() if what != "cosine")
        lines.append(f"gradient, {name}: cosine {row['cosine']:.9f}, {near}")
    return "\n".join(lines)


def write(task: Task, found: Mapping[str, Any]) -> None:
    (task.folder / FOUND).write_text(json.dumps(dict(found)))


def write_gradient(task: Task, grads: Sequence[Tensor]) -> None:
    """By their places in the network."""
    named = {f"{place:04}": grad.detach().contiguous() for place, grad in enumerate(grads)}
    save_file(named, task.folder / GRADIENT)


def agreement(ours: Path, theirs: Path) -> dict[str, float]:
    """Cosine and relative difference of two whole gradients; the lowest cosine of a matrix."""
    a, b = (load_file(folder / GRADIENT) for folder in (ours, theirs))
    if {n: t.shape for n, t in a.items()} != {n: t.shape for n, t in b.items()}:
        raise UserError("The two sides teach different matrices: their gradients do not compare.")
    whole = [torch.cat([t.flatten().double() for _, t in sorted(g.items())]) for g in (a, b)]
    cosines = [cosine(a[name].flatten().double(), b[name].flatten().double()) for name in a]
    return {
        "cosine": cosine(*whole),
        "relative difference": ((whole[0] - whole[1]).norm() / whole[1].norm()).item(),
        "lowest cosine of a matrix": min(cosines),
        "norm of theirs": whole[1].norm().item(),
    }


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, 0).item()


def table(peer: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of CPU seconds and MB, and their ratios to the peer's row."""
    lines = ["| | CPU s a step | ratio | peak MB | ratio |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        cpu, peak = row["cpu"] / rows[peer]["cpu"], row["peak"] / rows[peer]["peak"]
        lines.append(f"| {name} | {row['cpu']:.2f} | {cpu:.2f} | {row['peak']:.0f} | {peak:.2f} |")
    return "\n".join(lines)


def verdicts(
    peer: str, rows: Mapping[str, Mapping[str, Any]], variants: Sequence[Variant]
) -> list[dict[str, Any]]:
    """What was asked of each variant, and whether it is so."""
    found = []
    for variant in variants:
        asked = {"cpu": variant.cpu, "peak": variant.memory}
        for what, most in asked.items():
            if most is not None and variant.name in rows:
                ratio = rows[variant.name][what] / rows[peer][what]
                row = {"variant": variant.name, "of": what, "asked": most, "ratio": ratio}
                found.append(row | {"reached": ratio <= most})
    return found


def told(verdict: Mapping[str, Any]) -> str:
    what = {"cpu": "CPU", "peak": "memory"}[verdict["of"]]
    said = "reached" if verdict["reached"] else "NOT REACHED"
    return f"{said}: {verdict['variant']}, {what} {verdict['ratio']:.3f} (asked {verdict['asked']})"
