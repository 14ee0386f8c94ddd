"""Drawn images of every row and seed in; figures with intervals, and a page of them, out.

The oracle's figures are pooled over the seeds a row has; a difference is to plain training of the
same base, seed and image by image. FID is of each seed's images, with their mean and ends.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from core.image_files import list_images
from core.images import read_images
from core.run import plain
from core.storage import read_json, write_atomic
from miniature import unprompted
from treat import figures
from treat.evaluate import reader
from treat.offline import read_offline

SHOWN = ("artifact_frequency", "artifact_area")
NO_SETS = (
    "There is no FID here: `treat.compare` or the features that it looks with are not installed."
)
SetFigures = Callable[[str], dict[str, Any]]
"""`ROW-SEED` -> FID and its kin."""


def judged(path: Path, pictures: Path, batch: int) -> None:
    """The oracle's figures of every image, as CSV; nothing where they are there."""
    if path.exists():
        return
    oracle = unprompted.Unprompted()
    read = reader(oracle.judge, oracle.flagged, oracle.meters, {})
    files, parts = list_images(pictures), []
    for at in range(0, len(files), batch):
        images = read_images(files[at : at + batch])
        parts.append(read(images, [""] * len(images))[0])
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, figures.as_csv(figures.joined(parts)))


def read_table(path: Path) -> dict[str, np.ndarray]:
    """What `judged` wrote."""
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    table: dict[str, np.ndarray] = {}
    for name in lines[0]:
        values = [line[name] for line in lines]
        if set(values) <= {"True", "False"}:
            table[name] = np.array([value == "True" for value in values])
        elif name == "category":
            table[name] = np.array(values)
        else:
            table[name] = np.array(values, float)
    return table


def set_figures(features: Path, out: Path, batch: int, resamples: int) -> SetFigures | None:
    """FID and its kin of a row's images, computed once; None where nothing is there to do it."""
    if find_spec("treat.compare") is None or not features.exists():
        return None
    names = ("treat.compare", "detector.features", "detector.set_metrics")
    compare, looking, metrics = (import_module(name) for name in names)
    network = looking.open_features(str(features))
    reference: list[Any] = []

    def known() -> Any:
        if not reference:
            images = read_offline(out / "reference", None, captioned=False)
            reference.append(compare.vectors_of(network, images, batch, "reference"))
            reference.append(metrics.Fid(reference[0]))
        return reference

    def measure(name: str) -> dict[str, Any]:
        path = out / "figures" / f"{name}.sets.json"
        if path.is_file() and read_json(path)["features"]["sha256"] == network.digest:
            return read_json(path)
        real, fid = known()
        images = read_offline(out / "images" / name, None, captioned=False)
        own = compare.vectors_of(network, images, batch, name)
        found = compare.compared(real, own, fid, metrics.NEIGHBOURS, resamples, 0)
        found["features"] = {"name": network.name, "sha256": network.digest}
        write_atomic(path, (json.dumps(plain(found), indent=2) + "\n").encode())
        return found

    return measure


def summarised(
    out: Path, found: Mapping[str, Sequence[int]], sets: SetFigures | None
) -> dict[str, Any]:
    """Every row's figures, and its differences to plain training of the same base."""
    tables = {
        (row, seed): read_table(out / "figures" / f"{row}-{seed}.csv")
        for row, seeds in found.items()
        for seed in seeds
    }
    rows = {}
    for row, seeds in found.items():
        own = figures.joined([tables[row, seed] for seed in seeds])
        rows[row] = figures.summarise(own) | {"seeds": list(seeds)}
        rows[row]["by_seed"] = {
            seed: {name: float(tables[row, seed][name].mean()) for name in SHOWN} for seed in seeds
        }
        control = f"{row.split('-')[0]}-base"
        shared = [seed for seed in seeds if seed in found.get(control, ())]
        if row != control and shared:
            mine, theirs = (
                figures.joined([tables[name, seed] for seed in shared]) for name in (row, control)
            )
            rows[row]["against"] = control
            rows[row]["difference"] = figures.compare(mine, theirs)
        if sets is not None:
            rows[row]["sets"] = {seed: sets(f"{row}-{seed}") for seed in seeds}
    return {"judge": unprompted.NAME, "method": figures.METHOD, "rows": rows}


def markdown(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """A line a row; intervals in brackets."""
    measured = any("sets" in row for row in found["rows"].values())
    head = ["row", "seeds", "n", "artifact frequency", "artifact area"]
    head += ["frequency - base, points", "area - base, points"] + (["FID"] if measured else [])
    lines = [head, ["---"] * len(head)]
    for name, row in found["rows"].items():
        cells = [titles[name], " ".join(map(str, row["seeds"])), f"{row['n']:,}"]
        for figure in SHOWN:
            low, high = row["interval"][figure]
            cells.append(f"{row[figure]:.1%} [{low:.1%}, {high:.1%}]")
        for figure in SHOWN:
            change = row.get("difference", {}).get(figure)
            cells.append("" if change is None else points(change))
        cells += [fids(row["sets"])] if measured else []
        lines.append(cells)
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    note = f"Judged by {found['judge']}. {found['method']}."
    named = [one["features"]["name"] for row in found["rows"].values()
             for one in row.get("sets", {}).values()]  # fmt: skip
    note += f" FID is that of {named[0]}: mean of the seeds, and each." if named else f" {NO_SETS}"
    return f"{text}\n\n{note}\n"


def points(change: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in change["interval"])
    return f"{100 * change['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"


def fids(sets: Mapping[Any, Mapping[str, Any]]) -> str:
    """The mean over the seeds, then each with its interval."""
    each = []
    for one in sets.values():
        ends = one["interval"]["fid"]
        each.append(f"{one['fid']:.3g}" + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if ends else ""))
    return f"{np.mean([one['fid'] for one in sets.values()]):.3g} ({'; '.join(each)})"
