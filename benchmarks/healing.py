"""Does treating heal? Several seeds of control, adapter and ceiling, all judged by the oracle.

    python -m benchmarks.healing --demo runs/demo --out runs/healing --seeds 3 --n 1000

Detectors, prompts and real images are those of a finished demo. Every arm has the same LoRA, data
and steps; `control` learns from the offline term alone, `ceiling` from the oracle's own gradient,
which no treatment may read. Held-out prompts, the same seeds for every arm.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

import core.config
import treat.evaluate
import treat.train
from core.errors import UserError
from core.run import plain
from core.storage import write_atomic
from diffdoctor.demo import Demo
from diffdoctor.demo_settings import FULL, QUICK
from miniature.ceiling import Ceiling
from miniature.meters import NAME, Bench

ARMS = ("control", "adapter", "ceiling")


class Config(core.config.Config):
    """Which demo to measure, and how thoroughly."""

    demo: Path = Path("runs/demo")
    """Folder of a finished `diffdoctor demo`."""
    quick: bool = False
    """The demo was a `--quick` one."""
    out: Path = Path("runs/healing")
    seeds: int = Field(3, ge=1)
    n: int = Field(1000, ge=2)
    """Images an arm."""
    ceiling: bool = True
    """Also train the ceiling of every seed (it costs the oracle's time)."""


def main(config: Config) -> int | None:
    if not (config.demo / "summary.json").is_file():
        raise UserError(f"{config.demo} holds no finished demo: run `make demo` first.")
    demo = Demo(config.demo, QUICK if config.quick else FULL)
    arms = {}
    for seed in range(config.seeds):
        for arm in ARMS[: 3 if config.ceiling else 2]:
            name = f"{arm}-{seed}"
            arms[name] = config.out / name
            code = train(demo, arm, arms[name], seed)
            if code:
                return code
    code = judge(config, demo, arms)
    if code:
        return code
    summary = json.loads((config.out / "evaluation/summary.json").read_text())
    rows = [row(summary, seed, config.ceiling) for seed in range(config.seeds)]
    text = json.dumps(plain(rows), indent=2) + "\n"
    write_atomic(config.out / "healing.json", text.encode())
    Console().print(table(rows))
    return None


def train(demo: Demo, arm: str, out: Path, seed: int) -> int | None:
    """One arm of one seed."""
    without = {"control": {"pixel_weight": 0.0, "lock_weight": 0.0}}
    watched = {"second_detector": demo.out / "second_detector"} if arm != "control" else {}
    given = {"detector": demo.out / "detector"} if arm == "adapter" else {}
    changes: dict[str, Any] = {**without.get(arm, {}), **watched, **given, "seed": seed}
    settings = demo.treatment(out.name, out=out, **changes)
    return treat.train.main(settings, reward_for=Ceiling if arm == "ceiling" else None)


def judge(config: Config, demo: Demo, arms: dict[str, Path]) -> int | None:
    """All arms of all seeds against the base, in one evaluation."""
    oracle = Bench()
    settings = treat.evaluate.Config(
        base=demo.newest,
        prompts=demo.out / "prompts/held_out.txt",
        adapters=tuple(f"{name}={path}" for name, path in arms.items()),
        control="control-0",
        out=config.out / "evaluation",
        n=config.n,
        seed=7,
        sampling_steps=demo.settings.sampling_steps,
        height=64,
        width=64,
        batch=50,
    )
    return treat.evaluate.main(settings, oracle.judge, oracle.meters, oracle.flagged, NAME)


def row(summary: dict[str, Any], seed: int, ceiling: bool) -> dict[str, Any]:
    """The figures of one seed, and how far the adapter went from the control to the ceiling."""
    names = ARMS[: 3 if ceiling else 2]
    arms = {"base": summary["arms"]["base"]}
    arms |= {name: summary["arms"][f"{name}-{seed}"] for name in names}
    found: dict[str, Any] = {"seed": seed, **arms}
    if ceiling:
        reach = {}
        for figure in ("artifact_frequency", "artifact_area"):
            start, end = (arms[name][figure] for name in ("control", "ceiling"))
            gone = start - arms["adapter"][figure]
            reach[figure] = gone / (start - end) if start > end else None
        found["share_of_ceiling"] = reach
    found["differences"] = {
        name: change
        for name, change in summary["differences"].items()
        if name.startswith(f"adapter-{seed} ")
    }
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title=f"Judged by {NAME}")
    for name in ("seed", "arm", "frequency", "area", "attributes", "entropy", "sharpness"):
        shown.add_column(name, justify="right")
    for one in rows:
        for arm in ("base", *ARMS):
            if arm in one:
                figures = one[arm]
                shown.add_row(
                    str(one["seed"]),
                    arm,
                    f"{figures['artifact_frequency']:.1%}",
                    f"{figures['artifact_area']:.2%}",
                    f"{figures['attribute_match']:.1%}",
                    f"{figures['entropy']:.3f}",
                    f"{figures['sharpness']:.4f}",
                )
    return shown


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.healing")
