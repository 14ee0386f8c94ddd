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
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor

import core.config
from base_models.checkpointing import recompute_blocks
from base_models.compilation import check_compilation, compile_blocks
from base_models.guidance import check_guidance, guidance_options
from base_models.layout import decoder_in_channels_last
from base_models.load import load_base
from base_models.quantise import check_quantisation, quantise
from base_models.sample import Precision, autocast
from base_models.sizes import check_size, check_steps
from core import seeds as seeding
from core.contracts import Detector, DiffusionModel, Latents, Schedule
from core.errors import UserError
from core.processes import this_process
from core.run import Run
from detector.ensemble import ensemble
from detector.segformer import SegformerDetector, freeze
from detector.storage import open_detector
from treat.adapter import check_adapters, fuse, pin, read_adapter, take_up
from treat.best import Best
from treat.checks import check_detectors, check_offline, check_refreshes, every_size, whole
from treat.choice import choose, drawn_among
from treat.drawings import accumulate_gradient, drawings, tidied
from treat.estimate import check_fits
from treat.guard import Guard
from treat.image_reward import ImageReward, check_reward, load_reward
from treat.inputs import hold_to_inputs, may_change
from treat.ledger import Ledger
from treat.lora import add_lora, lora_parameters
from treat.offline import RealRows, by_size, cache_offline, drawn_from, read_offline
from treat.pieces import Pieces
from treat.refresh import Refresher
from treat.settings import NO_DETECTOR, Config
from treat.shard import check_sharding, shard, sharded
from treat.step import Chain
from treat.terms import RewardTerm, Score, lock_to_base, offline_term
from treat.texts import Sampler, Split, Texts, encode_texts, split_prompts
from treat.update import (
    LORA,
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
from treat.watch import DetectorFor, Resting, Watcher


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
        pieces = Pieces(update, run.event, ledger.save, may_halve=not sharded())
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


def always(detector: Detector) -> DetectorFor:
    return lambda prompts: detector


def check(config: Config, given: DetectorFor | None, place: PartialState) -> None:
    """Everything that can be wrong, before anything heavy; raises `UserError`."""
    prompts = split(config).train
    for size in every_size(config):
        check_size(config.base, *size)
    check_steps(config.base, config.total_steps)
    check_guidance(config.base, config.guidance, config.learn_empty)
    check_sharding(config.quantise, config.compile_blocks)
    check_quantisation(config.quantise)
    if config.compile_blocks:
        check_compilation(place.device or torch.device("cpu"))
    start, beside = (read_adapter(a) if a else None for a in (config.start, config.beside))
    check_adapters(config.base, config.rank, config.targets, start=start, beside=beside)
    check_detectors(config)
    if config.refresh_every and given is not None:
        raise UserError("Only the config's own detector can be refreshed: set refresh_every to 0.")
    check_refreshes(config)
    if config.image_reward:
        check_reward(config.image_reward)
    if given is not None and config.detector is not None:
        raise UserError("A reward is given, and teaches in place of --detector: leave that out.")
    if config.pixel_weight and given is None and config.detector is None:
        raise UserError(NO_DETECTOR)
    if config.check_memory and place.is_main_process and not given:
        check_fits(config, place.device)
    if config.pixel_weight and given and not given(prompts[:1]).differentiable:
        raise UserError(
            "This detector carries no gradient from its map to the image, and a treatment learns "
            "from nothing else: give one that is differentiable, such as a trained SegFormer."
        )
    check_offline(config, decode=place.is_main_process)


def split(config: Config) -> Split:
    shown = config.watch_images, config.picture_prompts, config.watch_prompts
    return split_prompts(config.prompts, *shown)


def open_model(
    config: Config, place: PartialState, device: torch.device
) -> tuple[DiffusionModel, Texts, list[RealRows]]:
    """The base with its adapters; prompts and real images encoded once, into the run folder."""
    beside = read_adapter(config.beside) if config.beside else None
    if beside is not None and place.is_main_process:
        pin(config.out / "beside.json", beside.digest)
    guiding = guidance_options(config.guidance, config.learn_empty)
    model = load_base(config.base, dtype=getattr(torch, config.base_dtype), **guiding)
    model.encoders_to(device)
    recompute_blocks(model, config.checkpoint_blocks, config.checkpoint_decoder)
    cache, real = config.out / "cache", []
    with place.main_process_first():
        texts = encode_texts(cache, model, config.base, split(config), device)
        if config.offline:
            images = read_offline(config.offline, config.offline_limit)
            for size, near in by_size(cache, images, every_size(config)).items():
                rows = cache_offline(cache, model, config.base, near, *size)
                real.append(RealRows(rows, near.captions, device, hold=not real))
    model.drop_text_encoders()
    if beside is not None:
        fuse(model.network, beside)
    targets = model.lora_targets(config.targets)
    add_lora(model.network, config.rank, targets, seeding.mix(config.seed, LORA))
    if config.start:
        take_up(model.network, read_adapter(config.start))
    quantise(model.network, config.quantise)
    if sharded():
        shard(model.network)
    model.to(device)
    decoder_in_channels_last(model)
    if config.compile_blocks:
        compile_blocks(model.network)
    return model, texts, real


def open_detectors(
    config: Config, device: torch.device, given: DetectorFor | None
) -> dict[str, DetectorFor]:
    """`reward`, which is learnt from, and `second`, which only looks and rests between; frozen."""
    detectors = {} if given is None else {"reward": given}
    taught = [config.detector, *config.further_detectors]
    if given is None and any(taught):
        opened = [freeze(open_detector(folder)).to(device) for folder in taught if folder]
        detectors["reward"] = always(ensemble(opened))
    if config.second_detector:
        detectors["second"] = always(Resting(freeze(open_detector(config.second_detector))))
    return detectors


def open_scorer(config: Config, device: torch.device) -> ImageReward | Resting | None:
    if config.image_reward is None:
        return None
    scorer = load_reward(config.image_reward, getattr(torch, config.base_dtype))
    return scorer.to(device) if config.image_weight else Resting(scorer)


def open_ledger(config: Config, run: Run, update: Update, watcher: Watcher) -> Ledger:
    refresher = None
    detector = watcher.detectors["reward"]([]) if config.refresh_every else None
    if isinstance(detector, SegformerDetector):
        refresher = Refresher(
            run.folder / "refresh",
            detector,
            config.refresh_data,
            config.annotator,
            every=config.refresh_every,
            images=config.refresh_images,
            tuning={
                "steps": config.refresh_steps,
                "learning_rate": config.refresh_rate,
                "loss": config.refresh_loss,
                "optimizer": config.refresh_optimizer,
                "augmentation": config.refresh_augmentation,
            },
            seed=config.seed,
        )
    return Ledger(
        run,
        watcher.sampler.model.network,
        update,
        watcher,
        refresher,
        best=Best(config.offline_rise),
        guard=Guard(config.tolerance) if config.guard != "off" else None,
        steps=config.steps,
        stop_at_collapse=config.guard == "stop",
        checkpoint_every=config.checkpoint_every,
        picture_every=config.picture_every,
        watch_every=config.watch_every,
        patience=config.patience,
        together=sharded(),
    )


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m treat.train")
