"""The evaluations of the healing arms in; a row a seed, the table and the verdicts out."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from miniature.meters import NAME, drift, factor_names, values_of
from treat.arms import BASE

ARMS = ("control", "paper", "adapter", "ceiling", "limit")
IDEAL: tuple[str, ...] = ("ceiling", "limit")


def evaluated(folder: Path) -> dict[str, Any]:
    """The summary of one seed's evaluation, and every arm's drift from base and law.

    A flaw can hide where a hand is, and such an image is read as either value. Among images that
    are sound with and without the adapter, `drift_sound` is what the adapter itself moved.
    """
    summary = json.loads((folder / "summary.json").read_text())
    paths = {name: folder / f"{name}.csv" for name in summary["arms"]}
    base, flawed = read_factors(paths[BASE]), read_flags(paths[BASE])
    for name, arm in summary["arms"].items():
        own, sound = read_factors(paths[name]), ~(flawed | read_flags(paths[name]))
        arm["drift"] = moved(own, base)
        arm["drift_sound"] = moved(rows_of(own, sound), rows_of(base, sound))
    return summary


def moved(own: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> dict[str, Any]:
    """The share that left the interval between base and law furthest."""
    factor, value, gone = drift(own, base)
    return {"factor": factor, "value": value, "shift": gone}


def rows_of(table: dict[str, np.ndarray], kept: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[kept] for name, column in table.items()}


def read_factors(path: Path) -> dict[str, np.ndarray]:
    """The columns of factors of an arm's table, as `treat.evaluate` wrote it."""
    rows = read_rows(path)
    names = factor_names(rows[0])
    return {name: np.array([int(row[name]) for row in rows]) for name in names}


def read_flags(path: Path) -> np.ndarray:
    """Which images the judge flagged, of the same table."""
    return np.array([row["artifact_frequency"] == "True" for row in read_rows(path)])


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def row(summaries: dict[int, dict[str, Any]], seed: int) -> dict[str, Any]:
    """The figures of one seed, and how far the adapter went from the control to each ideal."""
    every = {name: arm for one in summaries.values() for name, arm in one["arms"].items()}
    ideal = {n.split("-")[0]: arm for n, arm in every.items() if n.startswith(IDEAL)}
    arms = ideal | {n.split("-")[0]: arm for n, arm in summaries[seed]["arms"].items()}
    found: dict[str, Any] = {"seed": seed, **arms}
    for name in ideal:
        if arms.keys() >= {"control", "adapter"}:
            found[f"share_of_{name}"] = shares(arms["control"], arms["adapter"], ideal[name])
    found["differences"] = {
        name: change
        for name, change in summaries[seed]["differences"].items()
        if name.startswith(("adapter", "paper"))
    }
    return found


def shares(start: dict[str, Any], arm: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
    """Of the way from one arm to another; none where the other went nowhere."""
    figures = ("artifact_frequency", "artifact_area")
    ways = {figure: start[figure] - end[figure] for figure in figures}
    return {f: (start[f] - arm[f]) / way if way > 0 else None for f, way in ways.items()}


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title=f"Judged by {NAME}")
    figures_of = ("frequency", "area", "attributes", "entropy", "sharpness")
    for name in ("seed", "arm", *figures_of, "largest shift", "drift", "of the sound"):
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
                    shift(figures.get("largest_shift")),
                    drifted(figures.get("drift")),
                    drifted(figures.get("drift_sound")),
                )
    return shown


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """The paired differences to the control, in points, and the share of the ideals' way."""
    lines = []
    for one in rows:
        for pair, change in one["differences"].items():
            if "control" not in pair:
                continue
            for figure in ("artifact_frequency", "artifact_area", "attribute_match"):
                low, high = (100 * end for end in change[figure]["interval"])
                points = 100 * change[figure]["difference"]
                line = f"{pair}: {figure} {points:+.2f} points, 95 % {low:+.2f} to {high:+.2f}"
                for ideal in IDEAL if pair.startswith("adapter") else ():
                    share = one.get(f"share_of_{ideal}", {}).get(figure)
                    line += f"; {share:.0%} of the {ideal}'s" if share is not None else ""
                lines.append(line)
    return lines


def shift(found: dict[str, Any] | None) -> str:
    """The value of a factor whose share moved most against the base, in points."""
    if found is None:
        return ""
    value = values_of(found["factor"])[found["class"]]
    return f"{found['factor']} {value} {100 * found['shift']:+.1f}"


def drifted(found: dict[str, Any] | None) -> str:
    """The same of the share that left the interval between base and law furthest."""
    if found is None or not found["factor"]:
        return ""
    return f"{found['factor']} {found['value']} {100 * found['shift']:+.1f}"
