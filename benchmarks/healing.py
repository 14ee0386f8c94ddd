"""Does treating heal? Several seeds of control, adapter and ceiling, all judged by the oracle.

    python -m benchmarks.healing --demo runs/demo --out runs/healing --seeds 0 1 2 --n 1000

Base, detectors, prompts and real images are those of a finished demo. Every arm has the same LoRA,
data and steps, the ceiling a rate, weights and a threshold of its own. `control` learns from the
offline term alone, `paper` by the settings that the paper names, `ceiling` from the oracle's own
gradient, which no treatment may read. `limit` is how far that gradient goes with more updates,
images and learning steps and without the lock: whether the features can be mended at all. One
ceiling and one limit serve all seeds. Held-out prompts, the same noise for every arm.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from rich.console import Console

import core.config
import treat.evaluate
import treat.train
from benchmarks.healing_figures import IDEAL, evaluated, row, table, verdicts
from core.errors import UserError
from core.run import plain
from core.storage import write_atomic
from diffdoctor.demo import CONTROL, Demo, read_note
from diffdoctor.demo_settings import OF_BASE, quick
from miniature.ceiling import Ceiling
from miniature.meters import NAME, Bench

WIDTH = 140
"""Columns of the table, also where a file takes it."""
PAPER = {
    "last": 0.25,
    "selection": "threshold",
    "pixel_penalty": "probability",
    "threshold": 0.1,
    "pixel_weight": 1.0,
    "offline_weight": 0.25,
    "lock_weight": 0.0,
    "learning_rate": 1e-4,
    "decay": "constant",
}
"""DiffDoctor (arXiv 2501.12382), section 3.3, with the learning rate of its release. Its detector
stays as it is: no refresh, no second one that chooses a step."""
CEILING = {
    "threshold": 0.1,
    "pixel_penalty": "probability",
    "pixel_weight": 20.0,
    "lock_inside": 0.0,
    "learning_rate": 1e-3,
}
"""Its map is a distance in RGB, no probability: few pixels lie more than .5 from their target, and
its gradient is several times shorter than a detector's. Its target is the nearest valid image
already. Weaker ones healed less or blurred: docs/numbers-earlier.md, *A stronger ceiling*."""
LIMIT = {
    **CEILING,
    "steps": 300,
    "batch": 32,
    "last": 1.0,  # a share: all
    "gamma": 0.0,
    "lock_weight": 0.0,
    "offline_weight": 0.5,
}
"""Every step learns, and nothing is held: images become more alike, and a fifth softer."""
FURTHER = {**LIMIT, "steps": 120, "batch": 64, "learning_rate": 6e-4}
"""The limit goes on from there."""
WATCHED = {"watch_every": 40, "watch_images": 100, "guard": "warn"}
"""More than the demo, whose time is short: the second detector chooses by them. Every arm has all
its updates."""


class Config(core.config.Config):
    """Which demo to measure, and how thoroughly."""

    demo: Path = Path("runs/demo")
    """Folder of a finished `diffdoctor demo`."""
    quick: bool = False
    """The demo was a `--quick` one."""
    out: Path = Path("runs/healing")
    """Folder of all arms; the same command again takes up where it stopped."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """Seeds of the treatments; the first also has the ceiling and the limit, which serve all."""
    steps: int = Field(120, ge=1)
    """Updates of every arm but the limit, which has 300 and 120; the other settings are the demo's,
    but for those of the ceiling and the limit."""
    batch: int | None = Field(None, ge=1)
    """Images an update, of every arm but the limit; None: the demo's."""
    learning_rate: float | None = Field(None, gt=0)
    """Of adapters and controls; None: the demo's. Paper, ceiling and limit keep their own."""
    offline_target: Literal["images", "base"] = "images"
    """Of adapters, as of `treat`; a control would learn nothing from the base."""
    refresh_every: int = Field(20, ge=0)
    """Updates between two refreshes of the adapters' detector."""
    n: int = Field(1000, ge=2)
    """Images an arm."""
    arms: tuple[Literal["control", "paper", "adapter", "ceiling", "limit"], ...] = Field(
        ("control", "adapter", "ceiling"), min_length=1
    )
    """What to train; control and adapter are needed for a comparison."""
    judge: bool = True
    """False: only train, so that two cores may share the arms and a last command judges them."""


def main(config: Config) -> int | None:
    demo = open_demo(config.demo, config.quick)
    arms = {name: config.out / name for name in planned(config)}
    for name, folder in arms.items():
        code = train(config, demo, name, folder)
        if code:
            return code
    if not config.judge:
        return None
    judged = [seed for seed in config.seeds if own(arms, seed)]
    for seed in judged:
        code = judge(config, demo, own(arms, seed), seed)
        if code:
            return code
    summaries = {seed: evaluated(evaluation(config, seed)) for seed in judged}
    rows = [row(summaries, seed) for seed in judged]
    text = json.dumps(plain(rows), indent=2) + "\n"
    write_atomic(config.out / "healing.json", text.encode())
    console = Console(width=max(WIDTH, Console().width))
    console.print(table(rows))
    for line in verdicts(rows):
        console.print(line)
    return None


def open_demo(folder: Path, is_quick: bool) -> Demo:
    """A finished demo; raises `UserError` for what is none, or of the other kind."""
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder} holds no finished demo: run `make demo` first.")
    note = read_note(folder / "demo.json")
    settings = OF_BASE.get(note.get("base", ""))
    if settings is None:
        raise UserError(f"{folder} is of an earlier version: run the demo anew (--out).")
    demo = Demo(folder, quick(settings) if is_quick else settings)
    if note.get("labelled") != demo.settings.labelled:
        raise UserError(f"{folder} is of the other kind: {'drop' if is_quick else 'add'} --quick.")
    return demo


def planned(config: Config) -> list[str]:
    """`adapter-0` and so on; one ceiling and one limit, of the first seed, serve all."""
    seeds = dict.fromkeys(IDEAL, config.seeds[:1])
    return [f"{arm}-{seed}" for arm in config.arms for seed in seeds.get(arm, config.seeds)]


def train(config: Config, demo: Demo, name: str, out: Path) -> int | None:
    """One arm of one seed; those without a second detector end at their last step."""
    arm, seed = name.split("-")
    changes: dict[str, Any] = {"seed": int(seed), "steps": config.steps, **WATCHED}
    if config.batch:
        changes["batch"] = config.batch
    if config.learning_rate and arm in ("control", "adapter"):
        changes["learning_rate"] = config.learning_rate
    if arm == "control":
        changes |= CONTROL
    elif arm == "paper":
        changes |= PAPER | {"detector": demo.out / "detector"}
    elif arm == "adapter":
        changes |= demo.rewarded() | {"refresh_every": config.refresh_every}
        changes["offline_target"] = config.offline_target
    elif arm == "ceiling":
        changes |= CEILING
    else:
        first = demo.treatment(name, out=out.with_name(f"{name}-first"), **changes | LIMIT)
        code = treat.train.main(first, reward_for=Ceiling)
        if code:
            return code
        changes |= FURTHER | {"start": first.out, "seed": int(seed) + 1}
    settings = demo.treatment(name, out=out, **changes)
    return treat.train.main(settings, reward_for=Ceiling if arm in IDEAL else None)


def own(arms: dict[str, Path], seed: int) -> dict[str, Path]:
    """The arms of one seed."""
    return {name: path for name, path in arms.items() if name.split("-")[1] == str(seed)}


def judge(config: Config, demo: Demo, arms: dict[str, Path], seed: int) -> int | None:
    """The arms of one seed against the base; prompts and seeds are the same for every seed."""
    oracle = Bench()
    control = next((name for name in arms if name.startswith("control")), None)
    settings = treat.evaluate.Config(
        base=demo.base,
        prompts=demo.out / "prompts/held_out.txt",
        adapters=tuple(f"{name}={path}" for name, path in arms.items()),
        control=control,
        out=evaluation(config, seed),
        n=config.n,
        seed=7,
        sampling_steps=demo.settings.sampling_steps,
        height=64,
        width=64,
        batch=100,
    )
    return treat.evaluate.main(settings, oracle.judge, oracle.meters, oracle.flagged, NAME)


def evaluation(config: Config, seed: int) -> Path:
    """Named by its arms, for what is judged later together is another one."""
    arms = own(dict.fromkeys(planned(config), config.out), seed)
    return config.out / "-".join([f"evaluation-{seed}", *(name.split("-")[0] for name in arms)])


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.healing")
