"""What a treatment will need: its settings in; memory and arithmetic out, before any heavy byte.

    diffdoctor estimate --config treat.yaml --out runs/treat

The terms of an update run on tensors without contents, with one step that learns and with two; the
rest is linear in the steps. Weights are not needed, only the configs of the base. Not counted: what
a GPU adds (its context, gaps between what was freed), the optimizer's own step, and what happens
between updates: looks, pictures, refreshes of the detector.
"""

import functools
import json
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import core.config
from base_models.checkpointing import recompute_blocks
from base_models.guidance import check_guidance, guidance_options
from base_models.load import locate, read_parts
from base_models.outline import open_outline
from base_models.quantise import outline_quantised
from base_models.sample import autocast
from core.contracts import Latents
from core.counting import Cost, DryRun, norms_in_float32
from core.errors import UserError
from core.memory import machine_memory
from core.run import plain
from core.storage import write_atomic
from detector.ensemble import Ensemble, ensemble
from detector.segformer import freeze
from detector.storage import Single, read_description, untrained
from treat import settings
from treat.cache import CHUNK
from treat.checks import every_size, whole
from treat.drawings import drawings
from treat.image_reward import outline_of_reward
from treat.lora import add_lora, lora_parameters
from treat.offline import LATENTS, images_at_once
from treat.shard import sharded
from treat.step import Chain, latent_gradient, replay
from treat.terms import RewardTerm, Score, lock_to_base, offline_term
from treat.update import Update
from treat.views import Views

PROMPTS, REAL, DRAWING, LOCK = "prompts encoded", "real images encoded", "drawing", "base drawn"
REWARD, LEARNING, OFFLINE, OPTIMIZER = "reward", "learning", "offline term", "optimizer"
"""The phases, in their order."""
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
Costs = dict[str, Cost]


@dataclass(frozen=True)
class Estimate:
    """Bytes that stay, by what holds them; and the cost of each phase of one micro-batch."""

    resident: dict[str, int]
    phases: Costs

    @property
    def peak(self) -> int:
        """Bytes."""
        return max(cost.peak for cost in self.phases.values())


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
    one = count(config, 1)
    two = count(config, 2) if config.rewarded and number > 1 else one
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


def count(config: settings.Config, number: int) -> Estimate:
    """One micro-batch that is drawn in `number` steps, all learning, or redrawn so many times."""
    dry, phases, resident = DryRun(), {}, {}
    tally = dry.tally
    dtype = getattr(torch, config.base_dtype)
    guiding = guidance_options(config.guidance, config.learn_empty)
    model, networks = open_outline(config.base, dtype, **guiding)
    recompute_blocks(model, config.checkpoint_blocks, config.checkpoint_decoder)
    add_lora(model.network, config.rank, model.lora_targets(config.targets), config.seed)
    outline_quantised(model.network, config.quantise)
    if config.mixed_precision == "bf16" and config.base_dtype == "float32":  # else: no autocast
        norms_in_float32(model.network)
        norms_in_float32(model.vae)
    sides = max(every_size(config), key=math.prod)
    with dry.counting():
        for name in [name for name in networks if networks[name] is not model.network]:
            resident[name] = dry.materialise(networks.pop(name))
        with tally.work(phases, PROMPTS):
            model.encode_prompts(["a prompt"] * CHUNK)
        texts = model.encode_prompts(["a prompt"] * config.batch)
        if config.offline:
            with tally.work(phases, REAL):
                model.encode(torch.empty(images_at_once(*sides), 3, *sides))
        model.drop_text_encoders()
        resident["network"] = dry.materialise(model.network)
    folders = (config.detector, *config.further_detectors) if config.pixel_weight else ()
    detectors = [outline_of(folder) for folder in folders if folder]
    if config.second_detector:  # which only looks, and is elsewhere meanwhile
        outline_of(config.second_detector)
    scorer = outline_of_reward(config.image_reward, dtype) if config.image_reward else None
    steps = 1 if config.redraws else number
    schedule = model.schedule(steps, *sides)  # of real numbers
    chain = Chain(model, schedule, texts, config.gamma, autocast("cpu", config.mixed_precision))
    with dry.counting():
        before = tally.live
        update = Update(lora_parameters(model.network), config.weight_decay, config.clip)
        moments = [torch.empty_like(weight) for weight in update.weights for _ in range(2)]
        resident["optimizer"] = tally.live - before
        if scorer is not None and config.image_weight:
            resident["image reward"] = dry.materialise(scorer)
        seeds = list(range(config.batch))
        noise = model.noise(seeds, *sides)
        if config.rewarded:
            term = RewardTerm(**config.pixel_numbers)
            if detectors:
                resident["detector"] = sum(map(dry.materialise, detectors))
                term.detector = ensemble(detectors)
            if scorer is not None and config.image_weight:
                said = functools.partial(scorer, prompts=["a prompt"] * config.batch)
                term.score = Score(config.image_weight, said)
            count_reward(config, chain, noise, term, number, functools.partial(tally.work, phases))
        if config.offline_weight:
            with tally.work(phases, OFFLINE):
                offline_term(model, {LATENTS: noise, **texts}, seeds, chain.precision).backward()
        with tally.work(phases, OPTIMIZER):
            update.collect(1.0, {})
        del moments
    return Estimate(resident, phases)


def count_reward(
    config: settings.Config,
    chain: Chain,
    noise: Latents,
    term: RewardTerm,
    number: int,
    work: Callable[[str], AbstractContextManager],
) -> None:
    """The phases of what is drawn and rewarded, as `treat.train` has them."""
    detector = term.detector
    if detector is not None:
        term.detector = Views(detector, config.views, [config.seed] * config.batch)
        if config.lock_weight:
            with work(LOCK):
                term.lock = lock_to_base(chain, noise, detector, **config.lock_numbers)
    seeds = [config.seed] * len(noise) if config.redraws else None
    learning = [0] * number if config.redraws else list(range(number))
    drawn = drawings(chain, noise, learning, seeds, config.recompute)
    while True:
        with work(DRAWING):
            drawing = next(drawn, None)
        if drawing is None:
            break
        with work(REWARD):
            pull = latent_gradient(chain, drawing.latents, term, config.two_pass_decode)
        with work(LEARNING):
            replay(chain, drawing.tape, pull * drawing.factor)


def outline_of(folder: Path) -> Single | Ensemble:
    """A detector's network on the meta device, by its description alone."""
    with torch.device("meta"):
        return freeze(untrained(read_description(folder).config))


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
