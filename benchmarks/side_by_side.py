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
COLUMNS = {"cpu": "CPU s a step", "held": "MB held", "peak": "MB resident"}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""To the C library (glibc): a block of a MiB or more goes back to the system when it is freed.

By itself it keeps blocks of up to 32 MiB for later, and a small tensor that lives on between them
keeps them resident: which then says more of the heap than of what a trainer holds. Seconds are
taken without this, as the system's clearing of fresh pages costs some.
"""
OURS = "benchmarks.our_step"


class Task(core.config.Config):
    """One variant of a step, for a process of its own."""

    folder: Path
    """Where `FOUND` and, if wanted, `GRADIENT` are written."""
    base: Path
    """Pipeline folder."""
    lora: Path
    """Folder of the adapters that both sides begin with."""
    detector: Path
    """Its folder."""
    side: int = Field(ge=8)
    """Pixels."""
    steps: int = Field(ge=1)
    """T."""
    last: int = Field(ge=1)
    """K."""
    rank: int = Field(ge=1)
    """Of the adapters."""
    repeats: int = Field(ge=0)
    """Steps that are timed, after one that is not."""
    peer: Path | None = None
    """The other's code."""
    recompute: bool = False
    """As of `treat`."""
    checkpoint_blocks: bool = False
    """As of `treat`."""
    checkpoint_decoder: bool = False
    """As of `treat`."""
    two_pass_decode: bool = False
    """As of `treat`."""
    compile_blocks: bool = False
    """As of `treat`."""
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


def measure_both(module: str, task: Task, paths: Sequence[Path] = ()) -> dict[str, Any]:
    """CPU seconds and peak; in a second process of two steps, the peak of what is held.

    With `repeats` 0 the second alone.
    """
    again = task.folder / "held"
    timed = measure(module, task, paths) if task.repeats else {}
    two_steps = task.model_copy(update={"folder": again, "repeats": 1})
    held = measure(module, two_steps, paths, GIVEN_BACK)["peak"]
    return {**timed, "held": held, "gradient": again}


def measure(
    module: str, task: Task, paths: Sequence[Path] = (), more: Mapping[str, str] = {}
) -> dict[str, Any]:
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
        env={**os.environ, **extra, **more},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        (task.folder / "stderr.txt").write_text(done.stderr)
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{module} failed ({last}); run it by itself to see more: {settings}.")
    return json.loads((task.folder / FOUND).read_text())


def compare(
    peer: Rival, task: Task, variants: Sequence[Variant], further: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Rows by name, the peer's first; what was asked; and the gradients' agreement with the peer's.

    `task` is what all have in common; `further` are changes to it under which only the gradient
    of ours is wanted.
    """
    first = {"folder": task.folder / "peer", "peer": peer.path}
    theirs = measure_both(peer.module, task.model_copy(update=first), peer.packages)
    gradient = theirs.pop("gradient")
    rows, near = {peer.name: announced(peer.name, theirs)}, {}
    for number, variant in enumerate(variants):
        changes = {"folder": task.folder / f"variant-{number}", "last": variant.last}
        found = measure_both(OURS, task.model_copy(update={**changes, **variant.options}))
        ours = found.pop("gradient")
        rows[variant.name] = announced(variant.name, found)
        if variant.last == task.last:
            near[variant.name] = agreement(ours, gradient)
    for number, (name, changed) in enumerate(further.items()):
        changes = {"folder": task.folder / f"further-{number}", "repeats": 0, **changed}
        measure(OURS, task.model_copy(update=changes))
        near[name] = agreement(changes["folder"], gradient)
    return {"rows": rows, "asked": verdicts(peer.name, rows, variants), "gradients": near}


def announced(name: str, row: dict[str, Any]) -> dict[str, Any]:
    numbers = ", ".join(f"{what} {row[what]:.2f}" for what in COLUMNS if what in row)
    print(f"{name}: {numbers}", flush=True)
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
    """Of doubles however small: torch's own takes a norm below 1e-8 for 1e-8. Zeros agree."""
    norms = a.norm() * b.norm()
    return (a @ b / norms).item() if norms > 0 else float(a.equal(b))


def table(peer: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of what was measured, each with its ratio to the peer's."""
    columns = {what: unit for what, unit in COLUMNS.items() if what in rows[peer]}
    titles = " | ".join(f"{unit} | ratio" for unit in columns.values())
    lines = [f"| | {titles} |", "|---" * (1 + 2 * len(columns)) + "|"]
    for name, row in rows.items():
        places = {what: 2 if what == "cpu" else 0 for what in columns}
        cells = [
            f"{row[what]:.{places[what]}f} | {row[what] / rows[peer][what]:.2f}" for what in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(
    peer: str, rows: Mapping[str, Mapping[str, Any]], variants: Sequence[Variant]
) -> list[dict[str, Any]]:
    """What was asked of each variant, and whether it is so; memory in both ways."""
    found = []
    for variant in variants:
        asked = {"cpu": variant.cpu, "held": variant.memory, "peak": variant.memory}
        for what, most in asked.items():
            if most is not None and what in rows[peer]:
                ratio = rows[variant.name][what] / rows[peer][what]
                row = {"variant": variant.name, "of": what, "asked": most, "ratio": ratio}
                found.append(row | {"reached": ratio <= most})
    return found


def told(verdict: Mapping[str, Any]) -> str:
    what, ratio, asked = COLUMNS[verdict["of"]], verdict["ratio"], verdict["asked"]
    said = "reached" if verdict["reached"] else "NOT REACHED"
    return f"{said}: {verdict['variant']}, {what}: {ratio:.3f} of the peer's (asked {asked})"
