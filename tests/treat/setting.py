"""A whole treatment in a folder: tiny base, tiny detectors, prompts, real images."""

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch

from core.images import write_image
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector
from tests.tiny import SIZE, save_tiny
from treat.train import Config

MEASURED = {"time", "seconds", "host_memory", "device_memory"}
THINGS = ["hand", "face", "bicycle", "sign", "tree"]


def save_toy_detector(folder: Path, seed: int) -> None:
    """With a prior over the threshold, so that an untrained detector has something to say."""
    detector = SegformerDetector(SegformerConfig(variant="nano", prior=0.3), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    head = detector.network.decode_head.classifier.weight
    head.data = torch.randn(head.shape, generator=generator) * 0.5
    save_detector(detector, folder, {})


def build(folder: Path) -> Path:
    """`base`, `detector`, `second`, `real/`, `prompts.txt`, `watched.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tiny(folder / "base")
    for name, seed in (("detector", 1), ("second", 2)):
        save_toy_detector(folder / name, seed)
    (folder / "prompts.txt").write_text("".join(f"a {thing}\n" for thing in THINGS * 2))
    (folder / "watched.txt").write_text("".join(f"a tree of {i} leaves\n" for i in range(16)))
    generator = torch.Generator().manual_seed(0)
    (folder / "real").mkdir()
    for i, thing in enumerate(THINGS * 2):
        write_image(folder / "real" / f"{i}.png", torch.rand(3, SIZE, SIZE, generator=generator))
        (folder / "real" / f"{i}.txt").write_text(f"a {thing}")
    return folder


def config(world: Path, out: Path, **changes) -> Config:
    settings = {
        "base": str(world / "base"),
        "prompts": world / "prompts.txt",
        "out": out,
        "detector": world / "detector",
        "second_detector": world / "second",
        "offline": world / "real",
        "steps": 4,
        "batch": 1,
        "height": SIZE,
        "width": SIZE,
        "sampling_steps": 2,
        "rank": 2,
        "learning_rate": 1e-2,
        "picture_every": 0,
        "watch_every": 2,
        "watch_images": 2,
        "checkpoint_every": 100,
        "lock_weight": 1.0,
        "lock_dilation": 1,
    }
    return Config(**{**settings, **changes})


def digest(folder: Path, step: int, stems=("adapter", "optimizer", "rng")) -> str:
    """sha256 of the tensors of a checkpoint, but for Python's own generator.

    The shape checks of the tests (beartype) draw from that one.
    """
    total = hashlib.sha256()
    for stem in stems:
        path = folder / "checkpoints" / f"step-{step:08d}" / f"{stem}.safetensors"
        for name, tensor in sorted(safetensors.torch.load_file(path).items()):
            if name != "python":
                total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def losses(folder: Path) -> dict[int, dict]:
    """Figures by step, without the clock's and the machine's."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {k: v for k, v in line.items() if k not in MEASURED} for line in lines}
