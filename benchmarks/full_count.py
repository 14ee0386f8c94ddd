"""The cases of `benchmarks.full_size` in, their arithmetic and memory out; nothing is run.

    python -m benchmarks.full_count --json counted.json

The same step on tensors without contents. FLUX takes one to three minutes a case and the UNets, of
which every sampling step is counted, more.
"""

import json
from typing import Any, Literal

import torch

import core.config
from base_models.checkpointing import recompute_blocks
from base_models.quantise import outline_quantised
from base_models.sample import autocast
from benchmarks.full_shapes import Shape, conditioning, outline
from benchmarks.full_step import (
    CLIP,
    PRIOR,
    RANK,
    SHAPES,
    TARGETS,
    WEIGHT_DECAY,
    Case,
    World,
    accumulate,
    chosen,
    fitted,
    schedule_of,
)
from benchmarks.stopwatch import GIB
from core.counting import DryRun
from core.run import plain
from core.storage import write_atomic
from detector.segformer import SegformerConfig, SegformerDetector, freeze
from treat.lora import add_lora, lora_parameters
from treat.update import Update


class Config(core.config.Config):
    """Which shapes and cases."""

    shape: Literal["full", "tiny"] = "full"
    """The true one, or a tiny one to try the program."""
    only: tuple[str, ...] = ()
    """Names of cases, each in quotes; an unknown one lists them all."""
    json_file: core.config.JsonFile = None
    """Also write what is found to this file, after every case."""


def main(config: Config) -> None:
    found: dict[str, Any] = {}
    for case in chosen(config.only, compiled=True):
        shape = SHAPES[config.shape][case.base]
        found[case.name] = count(shape, fitted(case, config.shape))
        print(f"{case.name}: {json.dumps(found[case.name])}", flush=True)
        if config.json_file:
            text = json.dumps(plain(found), indent=2) + "\n"
            write_atomic(config.json_file, text.encode())


def count(shape: Shape, case: Case) -> dict[str, float]:
    """TFLOP of one step; GiB that stay, and at the peak."""
    dry = DryRun()
    model = outline(shape, torch.bfloat16)
    add_lora(model.network, RANK, model.lora_targets(TARGETS), 0)
    outline_quantised(model.network, case.quantise)
    recompute_blocks(model, case.checkpoint_blocks, case.checkpoint_decoder)
    with torch.device("meta"):
        detector = freeze(SegformerDetector(SegformerConfig(prior=PRIOR, **shape.detector)))
    with dry.counting():
        for part in (model.network, model.vae, detector):
            dry.materialise(part)
        update = Update(lora_parameters(model.network), WEIGHT_DECAY, CLIP)
        moments = [torch.empty_like(weight) for weight in update.weights for _ in range(2)]
        text = conditioning(shape, torch.bfloat16)
    world = World(shape, model, detector, text, update, autocast("cpu", "bf16"))
    schedule, resident = schedule_of(world, case), dry.tally.live  # of real numbers
    with dry.counting():
        accumulate(world, case, schedule, 0, lambda name: None)
    del moments
    peak, flops = dry.tally.peak, dry.tally.flops
    return {"TFLOP": flops / 1e12, "resident": resident / GIB, "peak": peak / GIB}


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.full_count")
