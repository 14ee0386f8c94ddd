"""The presets of `diffdoctor detector train` in; the memory that a step of each needs out.

    python -m benchmarks.detector_memory

Weights, their average, AdamW's moments, the hardening of a quarter of the batch, loss and gradient
are tensors without contents (`core.counting`). Not counted: the optimizer's own step, and what a
GPU adds (its context, gaps between what was freed).
"""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import core.config
from core.counting import Cost, DryRun
from detector import train
from detector.learning import batch_loss, harden
from detector.losses import LOSSES
from detector.segformer import SegformerConfig, SegformerDetector, checkpoint_blocks

GIB = 2**30


class Config(core.config.Config):
    """Which presets."""

    only: tuple[str, ...] = ()
    """Names; none: all."""


def main(config: Config) -> None:
    shown = Table("preset", "GiB that stay", "GiB hardening", "GiB learning", "TFLOP a step")
    for name in config.only or core.config.presets(train.Config):
        resident, costs = count(name)
        flops = sum(cost.flops for cost in costs.values()) / 1e12
        peaks = [costs[phase].peak / GIB for phase in ("hardening", "learning")]
        shown.add_row(name, *(f"{x:.1f}" for x in (resident / GIB, *peaks)), f"{flops:.0f}")
    Console().print(shown)


def count(name: str) -> tuple[int, dict[str, Cost]]:
    """Bytes that stay, and the cost of the phases of one step."""
    path = train.Config.presets or Path()
    words = ["--data", "none", "--out", "none"]
    settings = core.config.load_config(train.Config, path / f"{name}.yaml", words)
    dry, costs = DryRun(), {}
    with torch.device("meta"):
        detector = built(settings)
    with dry.counting():
        dry.materialise(detector.train())
        state = list(detector.state_dict().values())
        kept = [torch.empty_like(t) for t in state]  # the average
        kept += [torch.empty_like(p) for p in detector.parameters() for _ in "mv"]  # AdamW's
        images = torch.empty(settings.batch, 3, settings.size or 64, settings.size or 64)
        target = images[:, :1].clone()
        loss, autocast = LOSSES[settings.loss], settings.mixed_precision == "bf16"
        resident = dry.tally.live
        with dry.tally.work(costs, "hardening"):
            images = harden(detector, images, target, loss, settings.augmentation, seed=0, step=0)
        with dry.tally.work(costs, "learning"):
            batch_loss(detector, images, target, loss, autocast).backward()
        del kept
    return resident, costs


def built(settings: train.Config) -> SegformerDetector:
    """Random weights of the settings' shape."""
    detector = SegformerDetector(
        SegformerConfig(variant=settings.variant, input_size=settings.input_size)
    )
    if settings.checkpoint_blocks:
        checkpoint_blocks(detector)
    return detector


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.detector_memory")
