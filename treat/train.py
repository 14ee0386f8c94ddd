"""Treat a base model: prompts, a frozen detector and real images in, LoRA adapters out.

    python -m treat.train --config treat.yaml --out runs/treat
    accelerate launch --config_file accelerate_configs/many_gpus.yaml -m treat.train --config ...

The run folder holds figures, pictures and checkpoints; the same command resumes it.
Source: DiffDoctor (arXiv 2501.12382), section 3.3; the choices: docs/decisions.md.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from accelerate.utils import set_seed
from torch import Tensor

import core.config
from base_models.sample import Precision, autocast
from core import seeds as seeding
from core.contracts import Detector, DiffusionModel, Latents, Schedule
from core.processes import this_process
from core.run import Run
from treat.checks import every_size, whole
from treat.choice import choose, drawn_among
from treat.drawings import accumulate_gradient, drawings, tidied
from treat.image_reward import ImageReward
from treat.inputs import hold_to_inputs, may_change
from treat.lora import lora_parameters
from treat.offline import RealRows, drawn_from
from treat.pieces import Pieces
from treat.settings import Config
from treat.setup import check, open_detectors, open_ledger, open_model, open_scorer
from treat.shard import sharded
from treat.step import Chain
from treat.terms import RewardTerm, Score, lock_to_base, offline_term
from treat.texts import Sampler, Texts
from treat.update import (
    NOISE,
    OFFLINE,
    PROMPTS,
    REDRAWS,
    SHAPE,
    SIZE,
    STEPS,
    VIEWS,
    Places,
    Update,
)
from treat.views import Views
from treat.watch import DetectorFor, Resting, Watcher, always


def main(
    config: Config, reward: Detector | None = None, reward_for: DetectorFor | None = None
) -> int:
    """Run or resume a treatment; 0 when finished, `PAUSED` when stopped by a signal.

    `reward` replaces the config's detector; `reward_for(prompts)` gives one that knows what its
    images should show.
    """
    place = this_process()
    given = reward_for or (always(reward) if reward else None)
    config = whole(config)
    check(config, given, place)
    may = may_change(config.out)
    with Run.start(config, config.out, "treat", place.is_main_process, may) as run:
        hold_to_inputs(config, run, place.num_processes)
        device = place.device or torch.device("cpu")
        model, texts, real = open_model(config, place, device)
        run.event("info", f"{len(texts.train)} prompts teach, {len(texts.held)} are watched")
        sizes = every_size(config)
        schedules = [model.schedule(config.total_steps, *size) for size in sizes]
        precision = autocast(device.type, config.mixed_precision)
        places = Places(config.seed, config.batch, config.accumulation)
        update = Update(lora_parameters(model.network), config.weight_decay, config.clip)
        detectors, scorer = open_detectors(config, device, given), open_scorer(config, device)
        sampler = Sampler(model, texts, config.total_steps, *sizes[0], config.batch, precision)
        held = real[0] if real else None
        watcher = Watcher(sampler, detectors, scorer, held, config.seed, config.threshold)
        ledger = open_ledger(config, run, update, watcher)
        pieces = Pieces(update, run.event, ledger.keep, may_halve=not sharded())
        lesson = Lesson(config, model, texts, real, schedules, precision, detectors, scorer, places)
        set_seed(seeding.mix(config.seed) % 2**32)  # for what libraries may draw by themselves
        ledger.begin()
        for step in run.progress(ledger.remaining(), config.steps, ledger.step, "treat"):
            begun = time.perf_counter()
            if not ledger.refresh():
                break
            for micro in range(config.accumulation):
                here = places.here(micro)
                figures = pieces.run(partial(learn, lesson, step), here, places.share)
                update.collect(places.share, figures)
            figures = update.apply(step, config.seed, run.interrupted, rate(config, step))
            ledger.record(step, figures, time.perf_counter() - begun)
            if update.stopping or ledger.exhausted:
                break
        return ledger.close()


class Lesson(NamedTuple):
    """What a micro-batch is learnt with; the settings choose among its terms."""

    config: Config
    model: DiffusionModel
    texts: Texts
    real: list[RealRows]
    schedules: list[Schedule]
    precision: Precision
    detectors: Mapping[str, DetectorFor]
    scorer: ImageReward | Resting | None
    places: Places


def learn(lesson: Lesson, step: int, here: range, share: float) -> dict[str, Tensor]:
    """Add `share` of the gradient of these samples of the global batch; their mean figures."""
    config, model, places, figures = lesson.config, lesson.model, lesson.places, {}
    if config.rewarded:
        schedule = lesson.schedules[seeding.mix(config.seed, SIZE, step) % len(lesson.schedules)]
        seeds = places.seeds(NOISE, step, here)
        noise = model.noise(seeds, schedule.height, schedule.width)
        rows = places.rows(PROMPTS, len(lesson.texts.train), step, here)
        text = lesson.texts.conditioning(rows)
        chain = Chain(model, schedule, text, config.gamma, lesson.precision)
        views = places.seeds(VIEWS, step, here)
        term = reward_term(lesson, chain, noise, lesson.texts.said(rows), views)
        redraws = places.seeds(REDRAWS, step, here) if config.redraws else None
        drawn = drawings(chain, noise, learning_steps(config, step), redraws, config.recompute)
        if gives_back(config, noise.device):
            drawn = tidied(drawn)
        figures |= accumulate_gradient(chain, drawn, term, share, config.two_pass_decode)
    if lesson.real and config.offline_weight:
        shown = drawn_from(lesson.real, seeding.mix(config.seed, SHAPE, step))
        rows = shown.rows(places.rows(OFFLINE, len(shown.train), step, here))
        times = places.seeds(OFFLINE, step, here)
        loss = offline_term(model, rows, times, lesson.precision, config.offline_target)
        (loss * (config.offline_weight * share)).backward()
        figures["offline"] = loss.detach()
    return figures


def reward_term(
    lesson: Lesson, chain: Chain, noise: Latents, prompts: list[str], views: list[int]
) -> RewardTerm:
    """What is lowered: the detector's map, the change it makes, the image reward's negative."""
    config, scorer = lesson.config, lesson.scorer
    term = RewardTerm(**config.pixel_numbers)
    if config.pixel_weight:
        detector = lesson.detectors["reward"](prompts)
        term.detector = Views(detector, config.views, views)
        if config.lock_weight:
            term.lock = lock_to_base(chain, noise, detector, **config.lock_numbers)
    if scorer is not None and config.image_weight:
        term.score = Score(config.image_weight, partial(scorer, prompts=prompts))
    return term


def gives_back(config: Config, device: torch.device) -> bool:
    """Whether freed memory goes back to the system: with kept graphs a step would take 7 % longer
    (docs/numbers.md, *Given back*), and a GPU's tensors have an allocator of torch's own."""
    return config.checkpoint_blocks and device.type == "cpu"


def learning_steps(config: Config, step: int) -> list[int]:
    """Of one update; the same in every micro-batch and process."""
    seed = seeding.mix(config.seed, STEPS, step)
    found = choose(config.learning, config.gradient_steps, config.total_steps, seed)
    return drawn_among(found, config.redraws, seed) if config.redraws else found


def rate(config: Config, step: int) -> float:
    """The learning rate of a step, counted from 1."""
    left = 1 - (step - 1) / config.steps if config.decay == "linear" else 1.0
    return config.learning_rate * left


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m treat.train")
