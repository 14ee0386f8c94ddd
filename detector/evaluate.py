"""Measure a detector: labelled samples in, a table of figures (and JSON) out.

    diffdoctor detector evaluate --detector runs/detector --data shards/test --json figures.json

Figures are plain, overall and by source, category and generator (DiffDoctor's paper prints them
x100).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import core.config
from core.run import plain
from core.samples import Record, Sample
from core.storage import write_atomic
from detector.data import open_labelled, spread
from detector.measure import by_group, device, predict_samples
from detector.metrics import reliability
from detector.segformer import freeze
from detector.sources import Chosen
from detector.storage import digest, open_detector

SHOWN = {
    "images": "images",
    "mse": "MSE",
    "kl_fn": "KL (FN)",
    "kl_fp": "KL (FP)",
    "pixel_ap": "pixel AP",
    "iou": "IoU",
    "iou_1px": "IoU\n±1px",
    "f1": "F1",
    "calibration_error": "ECE",
    "image_auroc": "image\nAUROC",
    "false_positive_images": "FP\nimages",
}
WIDTH = 110
"""Columns of text that the table needs; also where the output is a file."""
Figures = dict[str, dict[str, dict[str, float]]]


class Config(core.config.Config):
    """Settings of one measurement."""

    detector: Path
    """Folder of the detector, or of the run that trained it."""
    data: tuple[Path, ...]
    """Shard folders, or folders with images/, masks/ and real/."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """From here a pixel counts as flagged."""
    size: int | None = Field(None, ge=8)
    """Resize all images to this square; needed where their sizes differ."""
    limit: int | None = Field(None, ge=1)
    """Measure on at most so many samples."""
    batch: int = Field(32, ge=1)
    """Images that the detector sees at once."""
    device: str = "auto"
    """`auto`, or a torch device."""


def main(config: Config) -> None:
    """Print the table; write the JSON if asked."""
    detector = freeze(open_detector(config.detector)).to(device(config.device))
    samples, records = open_labelled(config.data)
    samples, records = _thinned(samples, records, config.limit)
    maps, target = predict_samples(detector, samples, config.batch, config.size)
    figures = by_group(maps, target, records, config.threshold)
    if config.json_file is not None:
        result = {"detector": digest(config.detector), "threshold": config.threshold, **figures}
        result["reliability"] = reliability(maps, target)
        write_atomic(config.json_file, (json.dumps(plain(result), indent=2) + "\n").encode())
    Console(width=max(WIDTH, Console().width)).print(table(figures))


def table(figures: Figures) -> Table:
    """One row a group; a dash where the data does not define a figure."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("group", no_wrap=True)
    for title in SHOWN.values():
        shown.add_column(title, justify="right")
    for kind, groups in figures.items():
        for name, values in groups.items():
            group = kind if name == "all" else f"{kind} {name}"
            shown.add_row(group, *(_cell(key, values[key]) for key in SHOWN))
        shown.add_section()
    return shown


def _cell(name: str, value: float) -> str:
    if value != value:
        return "-"
    return (
        str(int(value))
        if name == "images"
        else f"{value:z.4f}"
        if name == "mse"
        else f"{value:z.3f}"
    )


def _thinned(
    samples: Sequence[Sample], records: Sequence[Record], limit: int | None
) -> tuple[Sequence[Sample], Sequence[Record]]:
    kept = spread(len(samples), limit)
    return Chosen(samples, kept), [records[i] for i in kept]


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m detector.evaluate")
