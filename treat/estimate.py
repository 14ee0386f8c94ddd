"""What a treatment will need: its settings in; memory and arithmetic out, before any heavy byte.

    diffdoctor estimate --config treat.yaml --out runs/treat

The terms of an update run on tensors without contents, with one step that learns and with two; the
rest is linear in the steps. Weights are not needed, only the configs of the base. Not counted: what
a GPU adds (its context, gaps between what was freed), the optimizer's own step, and what happens
between updates: looks, pictures, refreshes of the detector.
"""

import json
import math
import os
from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table

import core.config
from base_models.guidance import check_guidance
from base_models.load import locate, read_parts
from core.counting import Cost
from core.errors import UserError
from core.memory import machine_memory
from core.run import plain
from core.storage import write_atomic
from treat import settings
from treat.checks import every_size, whole
from treat.phases import (
    DRAWING,
    LEARNING,
    LOCK,
    OFFLINE,
    PROMPTS,
    REAL,
    REWARD,
    Estimate,
    count,
)
from treat.shard import sharded

ONCE = (PROMPTS, REAL)
GIB = 2**30
PRESETS = {
    "FluxPipeline": "flux",
    "StableDiffusionXLPipeline": "sdxl",
    "KolorsPipeline": "kolors",
}
"""How the presets call the families."""
AMPLE = 2**16
"""Bytes a pixel of a micro-batch, for each step whose graph is kept: the miniature takes 2**13."""
SUSTAINED = 1e14
"""Operations a second for which the hours are told: a round number, no device's own."""


class Config(settings.Config):
    """What a treatment with these settings will need: memory and arithmetic, phase by phase."""

    json_file: core.config.JsonFile = None
    """Also write the figures to this file (bytes and operations)."""


def main(config: Config) -> None:
    """Count, print the table, and write the figures if a file is named."""
    found = estimate(config)
    if config.json_file is not None:
        text = json.dumps(plain(asdict(found)), indent=2) + "\n"
        write_atomic(config.json_file, text.encode())
    console = Console()
    console.print(table(found))
    flops = sum(cost.flops for name, cost in found.phases.items() if name not in ONCE)
    flops *= config.accumulation
    hours = flops * config.steps / SUSTAINED / 3600
    console.print(
        f"peak {found.peak / GIB:.3g} GiB; {flops / 1e12:.4g} TFLOP an update of "
        f"{config.batch * config.accumulation} images; {config.steps} updates take {hours:.3g} "
        f"hours on a device that sustains {SUSTAINED / 1e12:.0f} TFLOP/s."
    )


def estimate(config: settings.Config) -> Estimate:
    """Count one micro-batch of `config` on one device.

    Needs the configs of base and detectors, and no image, prompt or weight; raises `UserError`
    where they are missing or damaged.
    """
    if config.pixel_weight and config.detector is None:
        raise UserError(settings.NO_DETECTOR)
    check_guidance(config.base, config.guidance, config.learn_empty)
    config = whole(config)
    number = config.redraws or config.gradient_steps
    one, two = count(config, 1, 2) if config.rewarded and number > 1 else count(config, 1) * 2
    phases = {name: extended(cost, two.phases[name], number) for name, cost in one.phases.items()}
    if DRAWING in phases:  # counted with fewer steps
        forward = one.phases[DRAWING].flops // (2 if config.redraws else 1)
        passes = config.total_steps + config.redraws
        phases[DRAWING] = Cost(phases[DRAWING].peak, passes * forward)
        if LOCK in phases:
            more = (config.total_steps - 1) * forward
            phases[LOCK] = Cost(one.phases[LOCK].peak, one.phases[LOCK].flops + more)
    return Estimate(one.resident, phases)


def check_fits(config: settings.Config, device: torch.device | None) -> None:
    """Raise `UserError` where a GPU, or without one the machine, is too small for a new run, with
    what would help.

    A network that is shared out needs less than is counted, and is not checked.
    """
    resumed = (config.out / "checkpoints").exists()
    if device is None or device.type not in ("cpu", "cuda") or resumed or sharded():
        return
    if device.type == "cuda":
        check_memory(config, torch.cuda.get_device_properties(device).total_memory)
        return
    share = machine_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not is_small(config, share):
        check_memory(config, share)


def is_small(config: settings.Config, size: int) -> bool:
    """Whether it is so far below `size` bytes that counting, which takes seconds, is spared."""
    base = locate(config.base, weights=False)
    files = (base if base.is_dir() else base.parent).rglob("*.safetensors")
    weights = sum(file.stat().st_size for file in files)
    pixels = config.batch * config.views * max(map(math.prod, every_size(config)))
    kept = 1 if config.recompute else config.gradient_steps
    return 0 < 2 * weights <= size - AMPLE * pixels * kept


def check_memory(config: settings.Config, memory: int) -> None:
    """The same for a device of so many bytes."""
    found = estimate(config)
    if found.peak <= memory:
        return
    phase = next(name for name, cost in found.phases.items() if cost.peak == found.peak)
    halves = config.base_dtype == "bfloat16" and config.mixed_precision == "bf16"
    options = {
        "--base-dtype bfloat16 --mixed-precision bf16": not halves,
        "--recompute": not config.recompute,
        "--checkpoint-decoder": phase == REWARD and not config.checkpoint_decoder,
        "--two-pass-decode": phase == REWARD and not config.two_pass_decode,
        "--checkpoint-blocks": phase in (LEARNING, OFFLINE) and not config.checkpoint_blocks,
        "--batch 1 with more --accumulation": config.batch > 1,
        "--quantise int8": phase not in ONCE and config.quantise == "no",
        "--quantise nf4": phase not in ONCE and config.quantise in ("int8", "fp8"),
    }
    cures = [option for option, unused in options.items() if unused][:1]
    cures += [f"--config {preset}" for preset in preset_for(config, memory)]
    raise UserError(
        f"this treatment needs {found.peak / GIB:.3g} GiB ({phase}) and the device has "
        f"{memory / GIB:.3g}: try {' or '.join(cures) or 'smaller images'} "
        "(`diffdoctor estimate` shows where it goes; --no-check-memory starts all the same)."
    )


def preset_for(config: settings.Config, memory: int) -> list[str]:
    """The largest preset of the base's family that was counted for a device of so many bytes."""
    kind = PRESETS.get(read_parts(locate(config.base, weights=False))[0])
    named = [name.split("-") for name in core.config.presets(settings.Config)]
    sizes = [int(size.removesuffix("gb")) for of, size in named if of == kind]
    # A device has some per cent less than its name says, and the presets leave room for that.
    fitting = [size for size in sizes if 0.95e9 * size <= memory]
    return [f"{kind}-{max(fitting)}gb"] if fitting else []


def extended(one: Cost, two: Cost, number: int) -> Cost:
    """The cost with `number` learning steps, from those with one and with two."""
    more = number - 1
    peak = one.peak + more * (two.peak - one.peak)
    return Cost(peak, one.flops + more * (two.flops - one.flops))


def table(found: Estimate) -> Table:
    """What stays, then the phases with the memory that each needs in all."""
    shown = Table(title="one micro-batch on one device")
    for name in ("", "GiB", "TFLOP"):
        shown.add_column(name, justify="right" if name else "left")
    for name, size in found.resident.items():
        freed = " (until prompts are encoded)" if "text_encoder" in name else ""
        shown.add_row(f"  {name}{freed}", f"{size / GIB:.3g}", "")
    shown.add_section()
    for name, cost in found.phases.items():
        top = cost.peak == found.peak
        shown.add_row(name, f"{cost.peak / GIB:.3g}", f"{cost.flops / 1e12:.4g}",
                      style="bold" if top else None)  # fmt: skip
    return shown


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m treat.estimate")
