"""A store or a labelled folder in; how much of what it holds, as tables and JSON, out.

diffdoctor data stats store --json stats.json

Legend: n samples.
"""

import json
import math
from array import array
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Float64
from pydantic import Field
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import core.config
from core.run import plain
from core.samples import Sample
from core.storage import write_atomic
from detector.groups import Groups, short_digest
from detector.sources import open_data

BY = ("source", "category", "generator", "licence")
KINDS = ("all", *BY, "size")
FIGURES = ("samples", "labelled", "marked", "area")


class Config(core.config.Config):
    """Count what data hold."""

    data: Annotated[
        tuple[Path, ...], tyro.conf.Positional, core.config.placed("STORE", several=True)
    ] = Field(min_length=1)
    """Stores, or folders with images/ and masks/ (and real/)."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """From here a pixel of a mask is marked."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    samples, _ = open_data(config.data, masked=False)
    tally = Tally()
    for i in tqdm(range(len(samples)), "read"):
        tally.add(samples[i], config.threshold)
    figures = tally.figures()
    for table in tables(figures):
        Console().print(table)
    if config.json_file:
        write_atomic(config.json_file, (json.dumps(plain(figures), indent=2) + "\n").encode())


class Tally:
    """What is counted of the samples so far: some 100 bytes are held of each."""

    def __init__(self) -> None:
        self.groups, self.prompts = Groups(), array("Q")
        self.areas = {kind: defaultdict[str, array](lambda: array("d")) for kind in KINDS}
        """Marked shares by kind and value; NaN without a mask."""

    def add(self, sample: Sample, threshold: float) -> None:
        record, (size, area) = sample.record, measured(sample, threshold)
        self.groups.add(record)
        if record.prompt:
            self.prompts.append(short_digest(record.prompt))
        said = {kind: getattr(record, kind) for kind in BY}
        for kind, value in {"all": "all", **said, "size": size}.items():
            self.areas[kind][value].append(area)

    def figures(self) -> dict[str, Any]:
        """Overall, by what a record says, and by size; values in their order."""
        found = {
            kind: {value: counted(np.array(areas)) for value, areas in sorted(of.items())}
            for kind, of in self.areas.items()
        }
        apart = {"prompts": len(np.unique(self.prompts)), "groups": len(self.groups.sizes())}
        return {"all": found.pop("all"), **apart, **found}


def measured(sample: Sample, threshold: float) -> tuple[str, float]:
    """Its size in words, and the marked share of its mask: NaN without one."""
    size = f"{sample.image.shape[1]}x{sample.image.shape[0]}"
    if sample.mask is None:
        return size, math.nan
    return size, float(np.mean(sample.mask >= 255 * threshold))


def counted(areas: Float64[np.ndarray, " n"]) -> dict[str, float | int | None]:
    """How many, how many with a mask, of these how many marked at all, and the share of pixels."""
    known = areas[~np.isnan(areas)]
    return {
        "samples": len(areas),
        "labelled": len(known),
        "marked": int((known > 0).sum()),
        "area": float(np.mean(known)) if len(known) else None,
    }


def tables(figures: dict[str, Any]) -> list[Table]:
    found = []
    for kind in KINDS:
        shown = Table(title=None if kind == "all" else f"by {kind}")
        for name in (kind, *FIGURES):
            shown.add_column(name, justify="left" if name == kind else "right")
        for value, one in figures[kind].items():
            area = "" if one["area"] is None else f"{one['area']:.2%}"
            counts = [f"{one[name]:,}" for name in FIGURES[:-1]]
            shown.add_row(value or "(none said)", *counts, area)
        found.append(shown)
    prompts, groups = figures["prompts"], figures["groups"]
    found[0].caption = f"{prompts:,} prompts; {groups:,} groups that a split keeps together"
    return found


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m data_balancing.stats")
