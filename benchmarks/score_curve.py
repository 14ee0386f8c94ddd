"""Do artifact regions rise and fall more than sound ones while an image is drawn? (ASCED's figure.)

    python -m benchmarks.score_curve --run runs/asced_table \\
        --svg docs/pictures/score_acceleration.svg

In: a folder of `benchmarks.asced_table`, or of `diffdoctor correct --judge oracle`, whose plain
images keep |Delta(w s)| of every step within the judge's mask and outside it, as shares of the
image's own mean. Out: the curve of their acceleration with ASCED's three phases, and how much each
region rises and falls: the sum of |acceleration| within a phase, per image, with paired intervals.
A small region swings more by being small; so the table's runs also hold the control, the same
sampling within the flaws of another image.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

import core.config
from core.config import read_yaml
from core.errors import UserError
from core.run import plain
from core.storage import check_file, read_json, write_atomic
from detector.score_dynamics import Window
from treat import figures
from treat.arms import BASE
from treat.correctors.acceleration import PHASES, drawing, mean_curves

PAIRS = {"artifact - sound": ("curves", "sound"), "artifact - control": ("control", "artifact")}
"""What the artifact's own curve is compared to."""


class Config(core.config.Config):
    """Which run, and where the picture goes."""

    run: Path
    """Folder of `benchmarks.asced_table` or `diffdoctor correct`."""
    svg: Path | None = None
    """The curve; by default RUN/score_acceleration.svg."""
    seed: int = Field(0, ge=0)
    """Of the resamples."""
    json_file: core.config.JsonFile = None
    """Also write the figures here; by default RUN/score_curve.json."""


def main(config: Config) -> None:
    svg = config.svg or config.run / "score_acceleration.svg"
    check_file(svg)
    summary = read_json(config.run / "summary.json")
    steps, window = read_yaml(config.run / "config.yaml")["sampling_steps"], summary["window"]
    files = sorted((config.run / "records" / BASE).glob("*.json"))
    records = [read_json(file) for file in files]
    mean = mean_curves([one.get("curves", {}) for one in records])
    if mean["images"] < 2:
        raise UserError(
            f"{config.run} has no two images with an artifact and a sound region: draw more."
        )
    found = {
        "images": mean["images"],
        "judge": summary["judge"],
        "steps": steps,
        "window": window,
        "curves": mean,
        "swing": swings(records, Window(**window), steps, config.seed),
        "method": figures.METHOD,
    }
    write_atomic(svg, drawing(mean, Window(**window), steps).encode())
    text = json.dumps(plain(found), indent=2) + "\n"
    write_atomic(config.json_file or config.run / "score_curve.json", text.encode())
    Console().print(table(found))


def swings(
    records: Sequence[Mapping[str, Any]], window: Window, steps: int, seed: int
) -> dict[str, Any]:
    """By phase: each region's mean swing, and the paired differences to the artifact's own."""
    found: dict[str, Any] = {}
    for pair, (kind, region) in PAIRS.items():
        both = [
            (one["curves"]["artifact"], one[kind][region])
            for one in records
            if "artifact" in one.get("curves", {}) and region in one.get(kind, {})
        ]
        if len(both) < 2:
            continue
        own, other = (by_phase(np.array(side), window, steps) for side in zip(*both, strict=True))
        found[pair] = {
            "images": len(both),
            "artifact": {name: float(values.mean()) for name, values in own.items()},
            "other": {name: float(values.mean()) for name, values in other.items()},
            "difference": figures.compare(own, other, seed),
        }
    return found


def by_phase(speed: np.ndarray, window: Window, steps: int) -> dict[str, np.ndarray]:
    """Sum of |acceleration| of every image within each phase and in `all`; a value belongs to the
    step that it was read at. Phases without a step are left out."""
    change = np.abs(np.diff(speed, axis=1))
    read_at = np.arange(change.shape[1]) + 2
    edges = [0, steps - round(window.t_d * steps), window.correction(steps), steps]
    parts = {
        name: change[:, (read_at >= first) & (read_at < last)]
        for name, first, last in zip(PHASES, edges[:-1], edges[1:], strict=True)
    }
    return {n: part.sum(axis=1) for n, part in {**parts, "all": change}.items() if part.size}


def table(found: Mapping[str, Any]) -> Table:
    shown = Table(title=f"Sum of |score acceleration|, by {found['judge']}")
    for name in ("pair", "images", "phase", "artifact", "other", "difference, 95 %"):
        shown.add_column(name, justify="left" if name in ("pair", "phase") else "right")
    for pair, one in found["swing"].items():
        for phase in one["artifact"]:
            apart = one["difference"][phase]
            low, high = apart["interval"]
            shown.add_row(pair, str(one["images"]), phase, f"{one['artifact'][phase]:.3f}",
                          f"{one['other'][phase]:.3f}",
                          f"{apart['difference']:+.3f}, {low:+.3f} to {high:+.3f}")  # fmt: skip
    return shown


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.score_curve")
