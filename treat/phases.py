"""A treatment's settings in, one micro-batch of it counted phase by phase out.

Its terms run as code on tensors without contents (`core.counting`). Weights are not needed, only
the configs of base and detectors.
"""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from base_models.checkpointing import recompute_blocks
from base_models.guidance import guidance_options
from base_models.outline import open_outline
from base_models.quantise import outline_quantised
from base_models.sample import autocast
from core.contracts import Conditioning, DiffusionModel, Latents
from core.counting import Cost, DryRun, norms_in_float32
from detector.ensemble import Ensemble, ensemble
from detector.segformer import freeze
from detector.storage import Single, read_description, untrained
from treat import settings
from treat.cache import CHUNK
from treat.checks import every_size
from treat.drawings import drawings
from treat.image_reward import outline_of_reward
from treat.lora import add_lora, lora_parameters
from treat.offline import LATENTS, images_at_once
from treat.step import Chain, latent_gradient, replay
from treat.terms import RewardTerm, Score, lock_to_base, offline_term
from treat.update import Update
from treat.views import Views

PROMPTS, REAL, DRAWING, LOCK = "prompts encoded", "real images encoded", "drawing", "base drawn"
REWARD, LEARNING, OFFLINE, OPTIMIZER = "reward", "learning", "offline term", "optimizer"
PHASES = (PROMPTS, REAL, LOCK, DRAWING, REWARD, LEARNING, OFFLINE, OPTIMIZER)
"""In their order."""
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


def count(config: settings.Config, *numbers: int) -> list[Estimate]:
    """One micro-batch that is drawn in so many steps, all learning, or redrawn so many times.

    For each of the `numbers`, by themselves; what they share is counted once.
    """
    dry, phases, resident = DryRun(), {}, {}
    tally = dry.tally
    dtype, sides = getattr(torch, config.base_dtype), max(every_size(config), key=math.prod)
    model, networks = outlined(config, dtype)
    with dry.counting():
        for name in [name for name in networks if networks[name] is not model.network]:
            resident[name] = dry.materialise(networks.pop(name))
        with tally.work(phases, PROMPTS):
            texts = repeated(model.encode_prompts(["a prompt"] * CHUNK), config.batch)
        if config.offline:
            with tally.work(phases, REAL):
                model.encode(torch.empty(images_at_once(*sides), 3, *sides))
        model.drop_text_encoders()
        resident["network"] = dry.materialise(model.network)
    detectors = outlined_detectors(config)
    scorer = outline_of_reward(config.image_reward, dtype) if config.image_reward else None
    chains = outlined_chains(config, model, texts, sides, numbers)
    own: dict[int, Costs] = {number: {} for number in numbers}
    with dry.counting():
        before = tally.live
        update = Update(lora_parameters(model.network), config.weight_decay, config.clip)
        moments = [torch.empty_like(weight) for weight in update.weights for _ in range(2)]
        resident["optimizer"] = tally.live - before
        seeds = list(range(config.batch))
        noise, term = model.noise(seeds, *sides), RewardTerm(**config.pixel_numbers)
        if scorer is not None and config.image_weight:
            resident["image reward"] = dry.materialise(scorer)
            said = functools.partial(scorer, prompts=["a prompt"] * config.batch)
            term.score = Score(config.image_weight, said)
        if detectors:
            resident["detector"] = sum(map(dry.materialise, detectors))
            detector = ensemble(detectors)
            term.detector = Views(detector, config.views, seeds)
            if config.lock_weight:
                with tally.work(phases, LOCK):
                    term.lock = lock_to_base(chains[1], noise, detector, **config.lock_numbers)
        for number in reversed(numbers) if config.rewarded else ():
            model.network.zero_grad()
            work = functools.partial(tally.work, own[number])
            count_reward(config, chains[number], noise, term, number, work)
        if config.offline_weight:
            with tally.work(phases, OFFLINE):
                rows = {LATENTS: noise, **texts}
                loss = offline_term(model, rows, seeds, chains[1].precision, config.offline_target)
                loss.backward()
        with tally.work(phases, OPTIMIZER):
            update.collect(1.0, {})
        del moments
    return [Estimate(resident, in_order(phases | own[number])) for number in numbers]


def outlined(
    config: settings.Config, dtype: torch.dtype
) -> tuple[DiffusionModel, dict[str, nn.Module]]:
    """The base with its adapters, and its networks by name, on the meta device."""
    guiding = guidance_options(config.guidance, config.learn_empty)
    model, networks = open_outline(config.base, dtype, **guiding)
    recompute_blocks(model, config.checkpoint_blocks, config.checkpoint_decoder)
    add_lora(model.network, config.rank, model.lora_targets(config.targets), config.seed)
    outline_quantised(model.network, config.quantise)
    if config.mixed_precision == "bf16" and config.base_dtype == "float32":  # else: no autocast
        norms_in_float32(model.network)
        norms_in_float32(model.vae)
    return model, networks


def outlined_detectors(config: settings.Config) -> list[Single | Ensemble]:
    """Those that teach. A second one only looks, and is elsewhere meanwhile: it must be there."""
    folders = (config.detector, *config.further_detectors) if config.pixel_weight else ()
    detectors = [outline_of(folder) for folder in folders if folder]
    if config.second_detector:
        outline_of(config.second_detector)
    return detectors


def outlined_chains(
    config: settings.Config,
    model: DiffusionModel,
    texts: Conditioning,
    sides: tuple[int, int],
    numbers: Sequence[int],
) -> dict[int, Chain]:
    """By the number of their steps, or of what is redrawn in one; made of real numbers, outside."""
    precision = autocast("cpu", config.mixed_precision)
    schedules = {
        number: model.schedule(1 if config.redraws else number, *sides) for number in (1, *numbers)
    }
    return {
        number: Chain(model, schedule, texts, config.gamma, precision)
        for number, schedule in schedules.items()
    }


def repeated(rows: Conditioning, number: int) -> Conditioning:
    """The first of encoded prompts, so many times."""
    return {name: torch.cat([tensor[:1]] * number) for name, tensor in rows.items()}


def in_order(phases: Costs) -> Costs:
    return {name: phases[name] for name in PHASES if name in phases}


def count_reward(
    config: settings.Config,
    chain: Chain,
    noise: Latents,
    term: RewardTerm,
    number: int,
    work: Callable[[str], AbstractContextManager],
) -> None:
    """The phases of what is drawn and rewarded, as `treat.train` has them; the lock is taken."""
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
