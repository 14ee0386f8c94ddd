"""What does pseudo-labelling cost beside the detector's own forward pass? Interleaved, one process.

    OMP_NUM_THREADS=1 python -m benchmarks.pseudo_label --variant mit_b0 --side 512

`bare` is the forward pass alone, on batches of tensors that lie in memory; `whole` labels a shard
of the same images: reads, checks, decodes, looks, encodes, writes and commits. On a CPU the seconds
are the processor's, of all threads; on a GPU they are the clock's.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from tqdm import trange

import core.config
from core.images import from_uint8
from core.run import plain
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from core.storage import write_atomic
from data_balancing.batches import batches, decoded
from data_balancing.teacher import Teacher, label_shard, opened
from detector.measure import device
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import digest, save_detector


class Config(core.config.Config):
    """Which detector on which images."""

    variant: str = "mit_b0"
    """Of the SegFormer."""
    side: int = Field(512, ge=32)
    """Pixels of the images and of the detector's input."""
    n: int = Field(32, ge=1)
    """Images of the shard."""
    batch: int = Field(8, ge=1)
    """Images that the detector sees at once."""
    repeats: int = Field(5, ge=1)
    """Times that either side is measured."""
    device: str = "cpu"
    """Where the detector runs."""
    bf16: bool = False
    """Compute in bf16."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        network = SegformerConfig.model_validate({"variant": config.variant})
        save_detector(SegformerDetector(network), folder / "detector", {})
        fill(folder / "store", config.n, config.side)
        given = folder / "detector"
        teacher = Teacher(given, digest(given), config.batch, config.device, config.bf16)
        found = measure(folder, teacher, config.repeats)
    found["ratio"] = found["bare"] / found["whole"]
    text = (
        f"{config.variant}, {config.side} pixels, {config.device}: bare {found['bare']:.4f} s an "
        f"image, whole {found['whole']:.4f}; throughput {found['ratio']:.3f} of the bare pass"
    )
    Console().print(text)
    if config.json_file:
        write_atomic(config.json_file, (json.dumps(plain(found), indent=2) + "\n").encode())


def fill(folder: Path, n: int, side: int, labelled: bool = False) -> None:
    """Pictures that a PNG can hold as well as photographs: smooth, with a little noise.

    A label marks the crests of one colour's wave, some twentieth of the image.
    """
    y, x = np.mgrid[0:side, 0:side] / side
    with ShardWriter(folder, n) as writer:
        for i in range(n):
            draw = np.random.default_rng(i)
            waves = [np.sin(a * x + b * y) for a, b in draw.uniform(1, 30, (3, 2))]
            levels = 127 + 100 * np.stack(waves, -1) + draw.normal(0, 3, (side, side, 3))
            record = Record(key=f"s-{i}", source="pseudo")
            image = levels.clip(0, 255).astype(np.uint8)
            mask = np.where(waves[0] > 0.99, 255, 0).astype(np.uint8) if labelled else None
            writer.write(Sample(record.key, image, mask, record))


def measure(folder: Path, teacher: Teacher, repeats: int) -> dict[str, Any]:
    """Median seconds an image of either, after one of each to warm up."""
    store = ShardStore(folder / "store")
    held = decoded(store, range(len(store)), teacher.batch)
    parts = [np.stack([one.image for one in part]) for part in batches(held, teacher.batch)]
    images = [from_uint8(part).to(device(teacher.device)) for part in parts]
    detector = opened(teacher)
    (shard,) = store.shards()

    @torch.inference_mode()
    def bare() -> None:
        for batch in images:
            with torch.autocast(batch.device.type, torch.bfloat16, enabled=teacher.bf16):
                detector.logits(batch)

    def whole() -> None:
        label_shard(folder / "store", shard, folder / "out", teacher)
        shutil.rmtree(folder / "out")

    seconds: dict[str, list[float]] = {"bare": [], "whole": []}
    for _ in trange(repeats + 1, desc="measure"):
        for name, work in (("bare", bare), ("whole", whole)):
            seconds[name].append(timed(work, teacher.device) / len(store))
    medians = {name: statistics.median(laps[1:]) for name, laps in seconds.items()}
    return {**medians, "laps": seconds}


def timed(work: Callable[[], object], on: str) -> float:
    """Seconds: on a CPU the processor's, of all threads; else the clock's until all is computed."""
    on_cpu = device(on).type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    begun = clock()
    work()
    if not on_cpu:
        torch.cuda.synchronize()
    return clock() - begun


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.pseudo_label")
