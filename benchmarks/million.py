"""How do a store's memory and time grow? Small samples written, opened, shuffled and read.

    OMP_NUM_THREADS=1 python -m benchmarks.million --folder /tmp/million --json million.json

Each size has a process of its own: seconds of its processor a sample, and the peak of its resident
memory above what it had once everything was imported. Linux only.
"""

import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

import core.config
from benchmarks.footprint import resident
from core.order import epoch_order
from core.run import plain
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from core.storage import write_atomic

STAGES = ("write", "open", "records", "read")


class Config(core.config.Config):
    """Which sizes, and where."""

    folder: Path
    """Where the stores are made, some 5 GB a million samples, and removed again."""
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((10_000, 100_000, 1_000_000))
    """Samples of each store."""
    side: int = Field(16, ge=8)
    """Pixels of an image; its mask has a quarter."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    fresh = multiprocessing.get_context("spawn")
    rows = []
    for size in config.sizes:
        with fresh.Pool(1) as pool:
            rows.append(pool.apply(measure, (config.folder / str(size), size, config.side)))
        print(json.dumps(plain(rows[-1])), flush=True)
    Console().print(table(rows))
    if config.json_file:
        write_atomic(config.json_file, (json.dumps(plain(rows), indent=2) + "\n").encode())


def measure(folder: Path, size: int, side: int) -> dict[str, Any]:
    """CPU seconds a sample of each stage, and MB at the peak."""
    before = resident("VmRSS")
    found: dict[str, Any] = {"samples": size}
    try:
        for stage, work in zip(STAGES, (write, opened, records, read), strict=True):
            begun = time.process_time()
            work(folder, size, side)
            found[stage] = (time.process_time() - begun) / size
        found["total"] = sum(found[stage] for stage in STAGES)
        found["peak"] = resident("VmHWM") - before
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def write(folder: Path, size: int, side: int) -> None:
    levels = np.random.default_rng(0)
    with ShardWriter(folder) as writer:
        for i in range(size):
            key = f"sample-{i:08d}"
            image = levels.integers(0, 256, (side, side, 3), dtype=np.uint8)
            record = Record(key=key, source="pseudo", prompt=f"prompt {i % 50_000}", seed=i)
            writer.write(Sample(key, image, image[::4, ::4, 0].copy(), record))


def opened(folder: Path, size: int, side: int) -> None:
    if len(ShardStore(folder)) != size:
        raise RuntimeError(f"{folder} does not hold what was written")


def records(folder: Path, size: int, side: int) -> None:
    if len({record.prompt for record in ShardStore(folder).records()}) != min(size, 50_000):
        raise RuntimeError(f"{folder} does not say what was written")


def read(folder: Path, size: int, side: int) -> None:
    """Every sample once, in the order of an epoch."""
    store = ShardStore(folder)
    seeds = {store[int(i)].record.seed for i in epoch_order(size, 0, 0)}
    if len(seeds) != size:
        raise RuntimeError(f"{folder} does not give every sample once")


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="CPU milliseconds a sample, and MB at the peak")
    for name in ("samples", *STAGES, "all", "of the first", "MB"):
        shown.add_column(name, justify="right")
    for row in rows:
        stages = [f"{1000 * row[stage]:.3f}" for stage in (*STAGES, "total")]
        ratio = f"{row['total'] / rows[0]['total']:.2f}"
        shown.add_row(f"{row['samples']:,}", *stages, ratio, f"{row['peak']:.0f}")
    return shown


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.million")
