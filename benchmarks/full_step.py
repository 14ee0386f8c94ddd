"""A case in, the gradient of one treat step at full size out; measured and counted elsewhere.

Rank 16 on attention and MLP, a SegFormer-b5 at 512 pixels in float32, one image. What is tried:
`CASES`, the most important first.

Legend: T sampling steps, K of them learn.
"""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from base_models.names import Quantisation
from base_models.quantise import quantise
from base_models.sample import Precision, autocast
from benchmarks.full_shapes import FULL, TINY, Shape, conditioning, fill, outline
from core.contracts import Conditioning, Latents, Schedule
from core.errors import UserError
from detector.segformer import SegformerConfig, SegformerDetector, freeze
from treat.lora import add_lora, lora_parameters
from treat.offline import LATENTS
from treat.step import Chain, draw, latent_gradient, replay
from treat.terms import RewardTerm, offline_term
from treat.update import Update

RANK, TARGETS = 16, "attention+mlp"
PRIOR = 0.5
"""The untaught detector's map: above the threshold, so that every pixel pulls."""
OFFLINE_WEIGHT, WEIGHT_DECAY, CLIP = 0.25, 0.1, 5.0
"""As `treat.settings` has them."""
TINY_STEPS = 4, 2
"""T and K of the tiny shapes, at most."""
SHAPES = {"full": FULL, "tiny": TINY}
Clock = Callable[[str], None]
"""Is told what has just ended."""


@dataclass(frozen=True)
class Case:
    """One row: a base, and how its step is taken."""

    name: str
    base: str
    steps: int = 4
    """T."""
    last: int = 1
    """K."""
    recompute: bool = False
    checkpoint_blocks: bool = False
    checkpoint_decoder: bool = False
    two_pass: bool = False
    quantise: Quantisation = "no"
    offline: bool = False
    whole_graph: bool = False
    """One graph from the noise to the loss, as a trainer without phases has it."""
    compiled: bool = False
    compared: bool = False
    """Also held against fp32."""
    tflop: float | None = None
    """Of one step at full size, by `benchmarks.full_count`."""


FRUGAL: dict[str, Any] = {"recompute": True}
"""Preset flux-80gb."""
BALANCED: dict[str, Any] = {**FRUGAL, "checkpoint_blocks": True, "checkpoint_decoder": True}
"""Preset flux-48gb."""
KEPT: dict[str, Any] = {"checkpoint_blocks": True, "checkpoint_decoder": True}
"""The same, and the step that learns is not drawn twice."""
LEAN: dict[str, Any] = {**BALANCED, "two_pass": True}
"""The presets for smaller GPUs."""
LONG: dict[str, Any] = {"steps": 30, "last": 8}
CASES = (
    Case("flux, fast", "flux", tflop=391.6),
    Case("flux, fast, decoder in two passes, offline term", "flux", checkpoint_decoder=True,
         two_pass=True, offline=True, tflop=569.2),
    Case("flux, as flux-80gb, offline term", "flux", **FRUGAL, offline=True, tflop=621.3),
    Case("flux, as flux-48gb", "flux", **BALANCED, tflop=538.7),
    Case("flux, as flux-48gb, graph kept", "flux", **KEPT, tflop=468.8),
    Case("flux, nf4", "flux", quantise="nf4", **LEAN, tflop=549.1),
    Case("flux, int8", "flux", quantise="int8", **LEAN, tflop=549.1),
    Case("flux, bf16 against fp32", "short flux", compared=True, tflop=99.7),
    Case("sdxl, fast", "sdxl", **LONG, **FRUGAL, tflop=671.2),
    Case("sdxl, as sdxl-16gb", "sdxl", **LONG, **LEAN, tflop=788.6),
    Case("kolors, lean", "kolors", **LONG, **LEAN, tflop=810.3),
    Case("flux, one graph of four steps", "flux", checkpoint_blocks=True, whole_graph=True,
         tflop=941.7),
    Case("sdxl, graphs kept, blocks checkpointed", "sdxl", **LONG, **KEPT, two_pass=True,
         tflop=679.0),
    Case("flux, fast, compiled", "flux", compiled=True, tflop=391.6),
    Case("flux, as flux-80gb, compiled", "flux", **FRUGAL, compiled=True, tflop=461.5),
)  # fmt: skip
"""The UNets cannot do without recomputing: a graph of SDXL takes 14 GiB, and 8 steps learn."""


def chosen(only: Collection[str], compiled: bool) -> list[Case]:
    """The named cases, or else all; compiled ones only where they are named or wanted."""
    unknown = set(only) - {case.name for case in CASES}
    if unknown:
        known = "; ".join(case.name for case in CASES)
        raise UserError(f"No case {', '.join(sorted(unknown))}: choose among {known}.")
    if only:
        return [case for case in CASES if case.name in only]
    return [case for case in CASES if compiled or not case.compiled]


def fitted(case: Case, shape: str) -> Case:
    """Fewer steps for the tiny shapes."""
    if shape == "full":
        return case
    steps, last = TINY_STEPS
    return replace(case, steps=min(case.steps, steps), last=min(case.last, last))


@dataclass(frozen=True)
class World:
    """A base with adapters on its device, and all that its step needs."""

    shape: Shape
    model: Any
    detector: SegformerDetector
    text: Conditioning
    update: Update
    precision: Precision


def build(shape: Shape, device: torch.device, kind: Quantisation, dtype: torch.dtype) -> World:
    """Random weights, made on the device; quantised there."""
    model = outline(shape, dtype)
    for seed, part in enumerate((model.network, model.vae)):
        fill(part, device, seed)
    add_lora(model.network, RANK, model.lora_targets(TARGETS), 0)
    quantise(model.network, kind)
    model.to(device)
    described = SegformerConfig(prior=PRIOR, **shape.detector)
    detector = freeze(SegformerDetector(described)).to(device)
    text = {name: rows.to(device) for name, rows in conditioning(shape, dtype).items()}
    update = Update(lora_parameters(model.network), WEIGHT_DECAY, CLIP)
    precision = autocast(device.type, "bf16" if dtype == torch.bfloat16 else "no")
    return World(shape, model, detector, text, update, precision)


def schedule_of(world: World, case: Case) -> Schedule:
    return world.model.schedule(case.steps, world.shape.side, world.shape.side)


def accumulate(world: World, case: Case, schedule: Schedule, number: int, clock: Clock) -> Tensor:
    """The gradient of one update, as `treat.train.learn` adds it up; the artifact loss."""
    model, side = world.model, world.shape.side
    noise = model.noise([number], side, side)
    chain = Chain(model, schedule, world.text, 1.0, world.precision)
    term = RewardTerm(1.0, "threshold", 0.1, world.detector)
    if case.whole_graph:
        one_graph(chain, noise, term)
        clock("whole graph")
    else:
        learning = range(case.steps - case.last, case.steps)
        latents, tape = draw(chain, noise, learning, case.recompute)
        clock("drawing")
        pull = latent_gradient(chain, latents, term, case.two_pass)
        clock("reward")
        replay(chain, tape, pull)
        clock("learning")
    if case.offline:
        rows = {LATENTS: model.noise([number + 1], side, side), **world.text}
        loss = offline_term(model, rows, [number], world.precision)
        (loss * OFFLINE_WEIGHT).backward()
        clock("offline term")
    return term.figures["pixel"]


def one_graph(chain: Chain, noise: Latents, term: RewardTerm) -> None:
    """All T steps carry gradient, and one `backward` passes them all."""
    latents = noise
    for i in range(chain.schedule.steps):
        latents = chain.step(latents, i)
    images = chain.decode(latents)
    with chain.precision():
        value = term(images)
    value.backward()


def in_fp32(world: World) -> World:
    """The same numbers, with nothing rounded any further."""
    for part in (world.model.network, world.model.vae):
        part.float()
    text = {name: rows.float() for name, rows in world.text.items()}
    return replace(world, text=text, precision=nullcontext)
