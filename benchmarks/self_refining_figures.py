"""Drawn images of every row and seed in; figures with intervals, and a page of them, out.

The oracle's figures are means over the seeds a row has; a difference is to plain training of the
same base, seed and image by image. Every training draws the same images' seeds, so that trainings
and images are crossed, and both vary: see `crossed`. FID is of each seed's images, with their mean
and ends.

Legend: s trainings (seeds), n images, the same in every training.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from core.image_files import list_images
from core.images import read_images
from core.run import plain
from core.storage import read_json, write_atomic
from detector.features import Features
from detector.set_metrics import NEIGHBOURS, Fid
from miniature import unprompted
from treat import figures
from treat.compare import compared, vectors_of
from treat.evaluate import reader
from treat.offline import read_offline

SHOWN = ("artifact_frequency", "artifact_area")
NO_SETS = "There is no FID here: no --features were given."
METHOD = (
    "95 % intervals hold the variance between trainings and that between images (the same images' "
    "seeds in every training): the half widths of the two t-intervals, squared and added; of one "
    "training, that of its images alone"
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


def set_figures(network: Features, out: Path, batch: int, resamples: int) -> SetFigures:
    """FID and its kin of a row's images, computed once for a network and number of resamples."""
    reference: list[Any] = []

    def known() -> Any:
        if not reference:
            images = read_offline(out / "reference", None, captioned=False)
            reference.append(vectors_of(network, images, batch, "reference"))
            reference.append(Fid(reference[0]))
        return reference

    def measure(name: str) -> dict[str, Any]:
        path = out / "figures" / f"{name}.sets.json"
        told: dict[str, Any] = {"features": {"name": network.name, "sha256": network.digest}}
        told["resamples"] = resamples
        if path.is_file() and told.items() <= read_json(path).items():
            return read_json(path)
        real, fid = known()
        images = read_offline(out / "images" / name, None, captioned=False)
        own = vectors_of(network, images, batch, name)
        found = compared(real, own, fid, NEIGHBOURS, resamples, 0) | told
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
        rows[row]["interval"] = {
            name: crossed(np.stack([tables[row, seed][name] for seed in seeds]))["interval"]
            for name in SHOWN
        }
        rows[row]["by_seed"] = {
            seed: {name: float(tables[row, seed][name].mean()) for name in SHOWN} for seed in seeds
        }
        control = f"{row.split('-')[0]}-base"
        shared = [seed for seed in seeds if seed in found.get(control, ())]
        if row != control and shared:
            pairs = [(tables[row, seed], tables[control, seed]) for seed in shared]
            rows[row]["against"] = control
            rows[row]["difference"] = {
                name: {"seeds": shared}
                | crossed(np.stack([np.subtract(a[name], b[name], dtype=float) for a, b in pairs]))
                for name in SHOWN
            }
        if sets is not None:
            rows[row]["sets"] = {seed: sets(f"{row}-{seed}") for seed in seeds}
    return {"judge": unprompted.NAME, "method": METHOD, "rows": rows}


def crossed(values: Float[np.ndarray, "s n"]) -> dict[str, Any]:
    """The mean over trainings and images, and its 95 % interval where both are random.

    Its half width is sqrt(h_s^2 + h_n^2), of the t-intervals over the trainings' means and over the
    images' means. What varies by neither alone is in both terms, which is cautious: made-up tables
    of 3 trainings and 200 images were held in 95 to 99.6 % (Satterthwaite's degrees of freedom for
    the summed variance: 93 to 99 %). Of one training h_s is unknown and left out.
    """
    values = np.asarray(values, float)
    halves = [
        stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5
        for means in (values.mean(axis=1), values.mean(axis=0))
        if len(means) > 1
    ]
    mean, half = float(values.mean()), float(np.hypot.reduce(halves))
    return {"difference": mean, "interval": [mean - half, mean + half]}


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
