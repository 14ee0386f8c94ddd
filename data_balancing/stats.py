"""A store or a labelled folder in; how much of what it holds, as tables and JSON, out.

diffdoctor data stats store --json stats.json
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic import Field
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import core.config
from core.run import plain
from core.samples import Record, Sample
from core.storage import write_atomic
from detector.groups import group_texts
from detector.sources import open_data

BY = ("source", "category", "generator", "licence")
FIGURES = ("samples", "labelled", "marked", "area")


class Config(core.config.Config):
    """Count what data hold."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional] = Field(min_length=1)
    """Stores, or folders with images/ and masks/ (and real/)."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """From here a pixel of a mask is marked."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    samples, records = open_data(config.data)
    rows = [
        (records[i], *measured(samples[i], config.threshold))
        for i in tqdm(range(len(samples)), "read")
    ]
    figures = summed_up(rows)
    for table in tables(figures):
        Console().print(table)
    if config.json_file:
        write_atomic(config.json_file, (json.dumps(plain(figures), indent=2) + "\n").encode())


def measured(sample: Sample, threshold: float) -> tuple[str, float | None]:
    """Its size in words, and the marked share of its mask."""
    size = f"{sample.image.shape[1]}x{sample.image.shape[0]}"
    if sample.mask is None:
        return size, None
    return size, float(np.mean(sample.mask >= 255 * threshold))


def summed_up(rows: Sequence[tuple[Record, str, float | None]]) -> dict[str, Any]:
    """Overall, by what a record says, and by size."""
    records = [record for record, _, _ in rows]
    prompts = {record.prompt for record in records if record.prompt}
    figures: dict[str, Any] = {
        "all": {"all": counted([area for _, _, area in rows])},
        "prompts": len(prompts),
        "groups": len(set(group_texts(records))),
    }
    for kind in BY:
        said = [getattr(record, kind) for record in records]
        figures[kind] = by_value(said, [area for _, _, area in rows])
    figures["size"] = by_value([size for _, size, _ in rows], [area for _, _, area in rows])
    return figures


def by_value(values: Sequence[str], areas: Sequence[float | None]) -> dict[str, Any]:
    """What is counted of each value, in the values' order."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for value, area in zip(values, areas, strict=True):
        found[value].append(area)
    return {value: counted(found[value]) for value in sorted(found)}


def counted(areas: Sequence[float | None]) -> dict[str, float | int | None]:
    """How many, how many with a mask, of these how many marked at all, and the share of pixels."""
    known = [area for area in areas if area is not None]
    return {
        "samples": len(areas),
        "labelled": len(known),
        "marked": sum(area > 0 for area in known),
        "area": float(np.mean(known)) if known else None,
    }


def tables(figures: dict[str, Any]) -> list[Table]:
    found = []
    for kind in ("all", *BY, "size"):
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
