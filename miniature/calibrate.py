"""Is the oracle right? Valid renders and planted faults in, the table of its errors out.

    python -m miniature.calibrate --n 1000 --faults 200 --vae newest --json oracle.json

False alarms on valid renders, on the grid and off it, before and after the autoencoder; the share
found of each planted fault, and how well the map covers it; both for every blob size that a
category's rule could use (`miniature.oracle.BLOB`).
Legend: n images, k acceptable masks, h w pixels.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Bool, Float
from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import core.config
from core.contracts import Images
from core.images import round_to_8bit
from core.seeds import generator
from core.storage import write_atomic
from miniature.blobs import blob_sizes, grow
from miniature.faults import FAULTS, acceptable, plant
from miniature.law import CATEGORIES, draw, draw_off_grid, prompts
from miniature.oracle import BLOB, Oracle
from miniature.paint import render
from miniature.render import OFF_GRID_TINT, open_autoencoder, roundtrip

VALID, BROKEN = 51, 52
"""What a draw is for; see `core.seeds`."""
CHUNK = 50
BLOBS = (3, 4, 5, 6, 8, 10, 12, 16, 24)
"""Sizes that the sweep tries, in connected pixels."""
POSES = ("on the grid", "off the grid")
TOLERANCE = 1
"""Pixels by which a border may be off before the overlap counts it."""


class Config(core.config.Config):
    """How many images, through which autoencoder."""

    n: int = Field(1000, ge=1)
    """Valid renders of each category, on the grid and as many off it."""
    faults: int = Field(200, ge=1)
    """Images of each planted fault."""
    vae: str | None = None
    """Grade or folder of a base model whose autoencoder the images go through as well."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""
    workers: int = Field(1, ge=1)
    """Processes, of one thread each."""
    seed: int = 0
    """Of the images."""


class Task(NamedTuple):
    """Some images of one kind; `kind` is a category or a fault."""

    what: str
    """`valid` or `fault`."""
    kind: str
    pose: str
    vae: str | None
    images: int
    number: int
    seed: int


class Reading(NamedTuple):
    """What the oracle said of a task's images, one entry an image."""

    largest: Float[np.ndarray, " n"]
    """Pixels of the largest blob that counts: for faults, one that touches what is broken."""
    overlap: Float[np.ndarray, " n"]
    """Intersection over union with the best acceptable mask; NaN for valid images."""


def main(config: Config) -> None:
    begun = time.monotonic()
    tasks = plan(config)
    found: dict[Task, Reading] = {}
    with ProcessPoolExecutor(config.workers, get_context("spawn"), one_thread) as pool:
        readings = tqdm(pool.map(run, tasks), "calibrate", total=len(tasks))
        found = dict(zip(tasks, readings, strict=True))
    figures = summarise(found) | {
        "blob": BLOB,
        "settings": config.model_dump(mode="json", exclude={"json_file", "workers"}),
        "seconds": round(time.monotonic() - begun, 1),
    }
    if config.json_file is not None:
        write_atomic(config.json_file, (json.dumps(figures, indent=2) + "\n").encode())
    for table in tables(figures):
        Console().print(table)


def plan(config: Config) -> list[Task]:
    """All tasks: every kind, raw and (if asked) through the autoencoder, in chunks."""
    vaes = [None] if config.vae is None else [None, config.vae]
    valid = [("valid", name, pose, config.n) for name in CATEGORIES for pose in POSES]
    faults = [("fault", name, POSES[0], config.faults) for name in FAULTS]
    return [
        Task(what, kind, pose, vae, min(CHUNK, total - at), at, config.seed)
        for what, kind, pose, total in valid + faults
        for vae in vaes
        for at in range(0, total, CHUNK)
    ]


def one_thread() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def run(task: Task) -> Reading:
    """Draw the task's images and let the oracle look; the same images raw and autoencoded."""
    return read_valid(task) if task.what == "valid" else read_fault(task)


def read_valid(task: Task) -> Reading:
    g = generator(task.seed, VALID, list(CATEGORIES).index(task.kind), task.number)
    if task.pose == POSES[0]:
        scenes = draw(task.kind, task.images, g)
    else:
        scenes = draw_off_grid(task.kind, task.images, g, OFF_GRID_TINT)
    posterior = look(render(scenes), prompts(scenes), task.vae)
    largest = blob_sizes(posterior > 0.5).flatten(1).amax(dim=1).numpy()
    return Reading(largest, np.full(task.images, np.nan))


def read_fault(task: Task) -> Reading:
    g = generator(task.seed, BROKEN, list(FAULTS).index(task.kind), task.number)
    scenes, broken, _ = plant(task.kind, task.images, g)
    masks = acceptable(task.kind, scenes, broken)
    posterior = look(broken, prompts(scenes), task.vae)
    sizes = blob_sizes(posterior > 0.5)
    touching = blob_sizes_touching(sizes, widen(masks.any(dim=1)))
    found = sizes >= BLOB[scenes.category]
    overlap = torch.stack([tolerant_overlap(found, mask) for mask in masks.unbind(1)])
    return Reading(touching.numpy(), overlap.amax(dim=0).numpy())


def look(images: Images, said: Sequence[str], vae: str | None) -> Float[Tensor, "n h w"]:
    """The outlier posterior of 8-bit images, perhaps after the autoencoder."""
    images = round_to_8bit(images)
    if vae is not None:
        images = roundtrip(autoencoder(vae), images)
    return Oracle().diagnose(images, said).posterior[:, 0]


@cache
def autoencoder(base: str) -> AutoencoderKL:
    return open_autoencoder(base)


def widen(masks: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    return grow(masks[:, None].float(), TOLERANCE)[:, 0] > 0.5


def blob_sizes_touching(
    sizes: Float[Tensor, "n h w"], where: Bool[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """The largest blob that has a pixel in `where`."""
    return (sizes * where).flatten(1).amax(dim=1)


def tolerant_overlap(
    found: Bool[Tensor, "n h w"], truth: Bool[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """Intersection over union; a pixel within `TOLERANCE` of the other mask agrees with it."""
    agreed = (found & widen(truth)) | (truth & widen(found))
    either = found | truth
    return agreed.flatten(1).sum(dim=1) / either.flatten(1).sum(dim=1).clamp(min=1)


def summarise(found: dict[Task, Reading]) -> dict[str, dict]:
    """Shares by kind, setting and blob size, and the mean overlap by fault and setting."""
    groups: dict[tuple[str, str, str], list[Reading]] = {}
    for task, reading in found.items():
        setting = task.pose if task.what == "valid" else "planted"
        setting += ", autoencoded" if task.vae else ""
        groups.setdefault((task.what, task.kind, setting), []).append(reading)
    figures: dict[str, dict] = {"false_alarms": {}, "found": {}, "overlap": {}}
    for (what, kind, setting), readings in groups.items():
        largest = np.concatenate([reading.largest for reading in readings])
        shares = {str(k): float((largest >= k).mean()) for k in sorted({*BLOBS, *BLOB.values()})}
        name = "false_alarms" if what == "valid" else "found"
        figures[name].setdefault(kind, {})[setting] = shares | {"n": len(largest)}
        if what == "fault":
            overlap = float(np.concatenate([reading.overlap for reading in readings]).mean())
            figures["overlap"].setdefault(kind, {})[setting] = overlap
    return figures


# Tables


def tables(figures: dict) -> list[Table]:
    """False alarms and finds at the rule in force, and the sweep of the worst of each."""
    alarms = grid("false alarms, % (blob)", figures["false_alarms"], figures["blob"])
    finds = grid("found, % (blob)", figures["found"], figures["blob"])
    overlap = Table("fault", *settings(figures["overlap"]), title="overlap (IoU, 1 px tolerance)")
    for kind, row in figures["overlap"].items():
        overlap.add_row(kind, *(f"{value:.2f}" for value in row.values()))
    return [alarms, finds, overlap, *(sweep(figures, name) for name in figures["false_alarms"])]


def category(kind: str) -> str:
    """The category of a kind of valid image (itself) or of a fault."""
    return FAULTS[kind].category if kind in FAULTS else kind


def grid(title: str, rows: dict, blob: dict[str, int]) -> Table:
    table = Table("kind", *settings(rows), "n", title=title)
    for kind, row in rows.items():
        size = str(blob[category(kind)])
        shown = [f"{100 * shares[size]:.1f} ({size})" for shares in row.values()]
        table.add_row(kind, *shown, str(next(iter(row.values()))["n"]))
    return table


def sweep(figures: dict, name: str) -> Table:
    """For every blob size a category's most false alarms and least found, in any setting."""
    alarms = figures["false_alarms"][name]
    finds = {f"{kind}, {setting}": shares for kind, row in figures["found"].items()
             if category(kind) == name for setting, shares in row.items()}  # fmt: skip
    table = Table("blob", "most false alarms, %", "least found, %", title=f"blob size: {name}")
    for size in [size for size in next(iter(alarms.values())) if size != "n"]:
        most = max((shares[size], setting) for setting, shares in alarms.items())
        least = min(((shares[size], fault) for fault, shares in finds.items()), default=(1.0, "-"))
        table.add_row(size, *(f"{100 * share:.1f}  {name}" for share, name in (most, least)))
    return table


def settings(rows: dict) -> list[str]:
    return list(next(iter(rows.values())))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m miniature.calibrate")
