"""Treated ten times as long: does the run end with its best step, or ruin the model?

    OMP_NUM_THREADS=1 python -m benchmarks.endurance --demo runs/demo --out runs/endurance

Base, detectors, prompts and real images are those of a finished demo. `guarded` is the demo's own
treatment with ten times its updates: offline term, lock, refreshed detector, a second detector that
chooses the step, the guard that ends a collapse. `bare` learns from the pixel loss alone, without
any of them; its guard only says what it would have ended. What both drew at every look, for the
same prompts and the same noise, is judged by the oracle, which neither has seen. What is there is
kept.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

import core.config
import treat.train
from core.images import read_images
from core.run import plain
from core.storage import write_atomic
from diffdoctor.demo import Demo, read_note
from diffdoctor.demo_settings import OF_BASE
from miniature.meters import Bench, entropy
from treat import figures

TIMES = 10
BARE = {"offline_weight": 0.0, "lock_weight": 0.0, "guard": "warn"}
ARMS = ("guarded", "bare")
BATCH = 100


class Config(core.config.Config):
    """Which demo to go on from, and how often to look."""

    demo: Path = Path("runs/demo")
    """Folder of a demo whose detectors are trained."""
    out: Path = Path("runs/endurance")
    """Folder of both runs; the same command again takes up where it stopped."""
    looks: int = Field(10, ge=1)
    """At equal distances, besides the one before the first update."""
    n: int = Field(300, ge=16)
    """Images of a look."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> int | None:
    demo = Demo(config.demo, OF_BASE[read_note(config.demo / "demo.json")["base"]])
    steps = TIMES * demo.settings.treat["steps"]
    watched = {"steps": steps, "watch_every": steps // config.looks, "watch_images": config.n}
    rewarded = demo.rewarded()
    of_arm: dict[str, dict[str, Any]] = {
        "guarded": rewarded,
        "bare": {"detector": rewarded["detector"], **BARE},
    }
    found = {}
    for name in ARMS:
        out = config.out / name
        code = treat.train.main(demo.treatment(name, out=out, **watched, **of_arm[name]))
        if code:
            return code
        best = json.loads((out / "summary.json").read_text())["best_step"]
        exported = steps if best is None else best  # where no look was sound, what is left
        found[name] = {"exported": exported, "looks": judge(out / "watched")}
    for arm in found.values():
        arm["lost"] = lost(arm["looks"], arm["exported"])
    write_atomic(
        config.json_file or config.out / "endurance.json",
        (json.dumps(plain(found), indent=2) + "\n").encode(),
    )
    Console(width=100).print(table(found))
    return None


def judge(watched: Path) -> dict[int, dict[str, Any]]:
    """By step: what the oracle and its meters say of the images of that look."""
    lines = (watched / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    return {int(at.name[5:]): look(at, prompts) for at in sorted(watched.glob("step-*"))}


def look(folder: Path, prompts: list[str]) -> dict[str, Any]:
    bench, parts = Bench(), []
    for at in range(0, len(prompts), BATCH):
        said = prompts[at : at + BATCH]
        images = read_images([folder / f"{at + i:05d}.png" for i in range(len(said))])
        parts.append({"flagged": bench.flagged(images, said), **bench.meters(images, said)})
    seen = figures.joined(parts)
    return {
        "flagged": seen["flagged"].astype(float),
        "attribute_match": float(seen["attribute_match"].mean()),
        "sharpness": float(seen["sharpness"].mean()),
        "entropy": entropy(seen),
    }


def lost(looks: Mapping[int, Mapping[str, Any]], exported: int) -> dict[str, Any]:
    """How many more images are flagged at the exported step than at the oracle's best, paired."""
    best = min(looks, key=lambda step: looks[step]["flagged"].mean())
    at_export, at_best = ({"flagged": looks[step]["flagged"]} for step in (exported, best))
    change = figures.compare(at_export, at_best)["flagged"]
    return {"best": best, "more": change["difference"], "interval": change["interval"]}


def table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    shown = Table(title="Judged by the oracle; * is the step that is exported")
    for name in ("arm", "updates", "flagged", "attributes", "entropy", "sharpness"):
        shown.add_column(name, justify="right")
    for arm, one in found.items():
        for step, seen in one["looks"].items():
            shown.add_row(
                arm,
                f"{step}{'*' if step == one['exported'] else ''}",
                f"{np.mean(seen['flagged']):.1%}",
                f"{seen['attribute_match']:.1%}",
                f"{seen['entropy']:.3f}",
                f"{seen['sharpness']:.4f}",
            )
    return shown


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.endurance")
