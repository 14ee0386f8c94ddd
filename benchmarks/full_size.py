"""What does one treat step take at full size, on the GPU that is there? Seconds, and GiB.

    python -m benchmarks.full_size --json full_size.json
    python -m benchmarks.full_size --count --json counted.json  # no GPU: arithmetic only
    python -m benchmarks.full_size --shape tiny                 # every case, quickly, on a CPU

The bases have their true shapes and random weights (`benchmarks.full_shapes`), the detector is a
SegFormer-b5 at 512 pixels in float32; 1024 pixels, one image, rank 16 on attention and MLP, bf16.
One step is one update of `treat.train`: drawing, reward, learning, offline term, optimizer. Cases
come in the order of their weight; one that fails is recorded, and the next begins. A case begun
within the budget of seconds is finished.

Legend: T sampling steps, K of them learn.
"""

import gc
import json
import math
import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn

import core.config
from base_models.checkpointing import recompute_blocks
from base_models.quantise import Quantisation, outline_quantised, quantise
from benchmarks.full_shapes import FULL, TINY, Shape, conditioning, fill, outline
from core.contracts import Conditioning, Latents, Schedule
from core.counting import DryRun
from core.errors import UserError
from core.run import plain
from core.seeds import generator
from core.storage import write_atomic
from detector.segformer import SegformerConfig, SegformerDetector, freeze
from treat.lora import add_lora, lora_parameters
from treat.offline import LATENTS
from treat.step import Chain, Precision, autocast, draw, latent_gradient, replay
from treat.terms import RewardTerm, offline_term
from treat.update import Update, this_process

GIB = 2**30
RANK, TARGETS = 16, "attention+mlp"
PRIOR = 0.5
"""The untaught detector's map: above the threshold, so that every pixel pulls."""
OFFLINE_WEIGHT, WEIGHT_DECAY, CLIP, RATE = 0.25, 0.1, 5.0, 1e-4
"""As `treat.settings` has them."""
TINY_STEPS = 4, 2
"""T and K of the tiny shapes, at most."""
Clock = Callable[[str], None]


class Config(core.config.Config):
    """Which shapes, which cases, how long."""

    shape: Literal["full", "tiny"] = "full"
    seconds: float = Field(150.0, gt=0)
    """After so many no further case is begun."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the frozen weights, and of what is computed."""
    repeats: int = Field(3, ge=1)
    """Timed steps of a case, after one that is not."""
    only: tuple[str, ...] = ()
    """Names of cases; all, if none is given."""
    compiled: bool = False
    """Also try FLUX with its blocks compiled where they leave no gradient; takes a minute."""
    count: bool = False
    """Run nothing: count the cases on tensors without contents."""
    json_file: core.config.JsonFile = None


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
    uncast: bool = False
    """Adapters take their inputs as they are: peft makes each fp32, and autocast makes it bf16."""


FAST: dict[str, Any] = {"recompute": False}
FRUGAL: dict[str, Any] = {"recompute": True}
"""Preset flux-80gb."""
BALANCED: dict[str, Any] = {**FRUGAL, "checkpoint_blocks": True, "checkpoint_decoder": True}
"""Preset flux-48gb."""
LEAN: dict[str, Any] = {**BALANCED, "two_pass": True}
"""The presets for smaller GPUs."""
LONG: dict[str, Any] = {"steps": 30, "last": 8}
CASES = (
    Case("flux, fast", "flux", **FAST),
    Case("flux, fast, offline term", "flux", offline=True, **FAST),
    Case("flux, as flux-80gb", "flux", offline=True, **FRUGAL),
    Case("flux, decoder in two passes", "flux", checkpoint_decoder=True, two_pass=True),
    Case("flux, balanced", "flux", **BALANCED),
    Case("flux, nf4", "flux", quantise="nf4", **LEAN),
    Case("flux, int8", "flux", quantise="int8", **LEAN),
    Case("flux, bf16 against fp32", "short flux", **FAST),
    Case("sdxl, fast", "sdxl", **LONG, **FAST),
    Case("sdxl, lean", "sdxl", **LONG, **LEAN),
    Case("kolors, lean", "kolors", **LONG, **LEAN),
    Case("flux, one graph of four steps", "flux", checkpoint_blocks=True, whole_graph=True),
    Case("flux, fast, inputs uncast", "flux", uncast=True, **FAST),
    Case("flux, fast, compiled", "flux", compiled=True, **FAST),
)
COMPARED = "flux, bf16 against fp32"
TFLOP: dict[str, float] = {}
"""Of one step at full size, by `--count`."""


def main(config: Config) -> None:
    begun = time.perf_counter()
    found: dict[str, Any] = {"machine": machine(), "shape": config.shape, "cases": {}}
    if config.count:
        measures = {case.name: counter(config, case) for case in chosen(config)}
    else:
        check_device(config.shape)
        n = 8192 if config.shape == "full" else 128
        found["dense product"] = attempt(lambda: {"TFLOP/s": dense_rate(n) / 1e12})
        print(f"dense product in bf16: {shown(found['dense product'])}", flush=True)
        bench = Bench(config, found["dense product"].get("TFLOP/s", math.nan), begun)
        measures = {case.name: bench.measure(case) for case in chosen(config)}
    for name, measure in measures.items():
        late = time.perf_counter() - begun > config.seconds
        found["cases"][name] = {"skipped": "no time left"} if late else attempt(measure)
        found["elapsed"] = time.perf_counter() - begun
        print(f"{found['elapsed']:6.1f} s  {name}: {shown(found['cases'][name])}", flush=True)
        if config.json_file:
            text = json.dumps(plain(found), indent=2) + "\n"
            write_atomic(config.json_file, text.encode())


def check_device(shape: str) -> None:
    if shape == "full" and not torch.cuda.is_available():
        raise UserError("Full size needs a CUDA device: count it (--count), or take --shape tiny.")


def chosen(config: Config) -> list[Case]:
    wanted = [case for case in CASES if config.compiled or not case.compiled]
    return [case for case in wanted if not config.only or case.name in config.only]


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it finds, or the error that ended it."""
    try:
        return measure()
    except Exception as error:  # whatever it is, the next case is still worth its time
        where = traceback.format_exc(limit=-4)
        return {"error": f"{type(error).__name__}: {error}"[:2000], "where": where[-4000:]}


def shown(row: dict[str, Any]) -> str:
    """A row's numbers on one line."""
    brief = {name: value for name, value in row.items() if name != "where"}
    return json.dumps(plain({n: rounded(value) for n, value in brief.items()}))


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


# One base at a time


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


# Measured


class Bench:
    """Cases measured in turn; a base stays for the next case that can use it."""

    def __init__(self, config: Config, dense: float, begun: float):
        self.config, self.dense = config, dense
        self.until = begun + config.seconds
        self.shapes = FULL if config.shape == "full" else TINY
        self.device = this_process().device or torch.device("cpu")
        self.known: tuple[str, Quantisation] | None = None
        self.world: World | None = None

    def measure(self, case: Case) -> Callable[[], dict[str, Any]]:
        case = fitted(case, self.config.shape)

        def run() -> dict[str, Any]:
            compared = case.name == COMPARED
            try:
                return self.compare(case) if compared else self.timed(case)
            except Exception:
                self.forget()  # what is half done would stand in the next one's way
                raise

        return run

    def forget(self) -> None:
        self.known = self.world = None
        clean_up()

    def opened(self, case: Case) -> World:
        """The base of a case, with nothing else on the device; checkpointing as it says."""
        wanted = case.base, case.quantise
        if self.known != wanted or self.world is None:
            self.forget()
            dtype = getattr(torch, self.config.dtype)
            self.world = build(self.shapes[case.base], self.device, case.quantise, dtype)
            self.known = wanted
        for part in (self.world.model.network, self.world.model.vae):
            part.disable_gradient_checkpointing()
        recompute_blocks(self.world.model, case.checkpoint_blocks, case.checkpoint_decoder)
        clean_up()
        return self.world

    def timed(self, case: Case) -> dict[str, Any]:
        begun = time.perf_counter()
        world = self.opened(case)
        row: dict[str, Any] = {"T": case.steps, "K": case.last, "opened": since(begun)}
        row["resident"] = allocated(self.device)
        schedule = schedule_of(world, case)
        if case.compiled:
            compile_prefix(world.model.network, self.device)
        if case.uncast:
            leave_inputs(world.model.network)
        seconds, phases, figures = [], [], {}
        for number in range(self.config.repeats + 1):
            stopwatch = Stopwatch(self.device)
            figures = take_step(world, case, schedule, number, stopwatch)
            total, parts = stopwatch.read()
            if number == 0:
                row["first"] = total
            else:
                seconds.append(total)
                phases.append(parts)
            if seconds and time.perf_counter() > self.until:
                break
        row |= self.summary(case, seconds, phases) | figures
        if case.compiled or case.uncast:
            self.forget()  # its blocks are no longer what they were
        return row

    def summary(
        self, case: Case, seconds: list[float], phases: list[dict[str, float]]
    ) -> dict[str, Any]:
        median = statistics.median(seconds)
        row: dict[str, Any] = {"median": median, "seconds": seconds}
        row["phases"] = {p: statistics.median([one[p] for one in phases]) for p in phases[0]}
        row |= peaks(self.device)
        counted = TFLOP.get(case.name) if self.config.shape == "full" else None
        if counted:
            row |= {"TFLOP": counted, "of dense": counted / median / self.dense}
        return row

    def compare(self, case: Case) -> dict[str, Any]:
        """The adapters' gradient in bf16 against that of the same numbers in fp32.

        B is drawn too: were it zero, A would have no gradient.
        """
        world = self.opened(case)
        schedule = schedule_of(world, case)
        for place, weight in enumerate(world.update.weights[1::2]):
            values = torch.randn(weight.shape, generator=generator(0, place))
            weight.data.copy_(values * 0.02)
        half, median = timed_gradient(world, case, schedule)
        full, seconds = timed_gradient(in_fp32(world), case, schedule)
        row = {"median": median, "seconds in fp32": seconds, **agreement(half, full)}
        row |= peaks(self.device)
        self.forget()  # it is in fp32 now
        return row


def fitted(case: Case, shape: str) -> Case:
    """Fewer steps for the tiny shapes."""
    if shape == "full":
        return case
    steps, last = TINY_STEPS
    return replace(case, steps=min(case.steps, steps), last=min(case.last, last))


def take_step(
    world: World, case: Case, schedule: Schedule, number: int, stopwatch: "Stopwatch"
) -> dict[str, Any]:
    """One update; its loss and the norm of its gradient."""
    pixel = accumulate(world, case, schedule, number, stopwatch.mark)
    world.update.collect(1.0, {"pixel": pixel})
    figures = world.update.apply(number + 1, 0, False, RATE)
    stopwatch.mark("optimizer")
    return {name: figures[name] for name in ("pixel", "gradient_norm", "skipped")}


def in_fp32(world: World) -> World:
    """The same numbers, with nothing rounded any further."""
    for part in (world.model.network, world.model.vae):
        part.float()
    text = {name: rows.float() for name, rows in world.text.items()}
    return replace(world, text=text, precision=nullcontext)


def timed_gradient(world: World, case: Case, schedule: Schedule) -> tuple[list[Tensor], float]:
    """The second of two gradients at the same noise (they are equal), and its seconds."""
    seconds = 0.0
    for _ in range(2):
        for weight in world.update.weights:
            weight.grad = None
        stopwatch = Stopwatch(next(iter(world.text.values())).device)
        accumulate(world, case, schedule, 0, stopwatch.mark)
        seconds, _ = stopwatch.read()
    grads = [weight.grad for weight in world.update.weights]
    return [grad.detach().clone() for grad in grads if grad is not None], seconds


def agreement(half: list[Tensor], full: list[Tensor]) -> dict[str, float]:
    """Cosine and ratio of the whole gradients; the cosines of single matrices."""
    pairs = list(zip(half, full, strict=True))
    a, b = (torch.cat([grad.flatten().double() for grad in grads]) for grads in (half, full))
    each = torch.stack(
        [nn.functional.cosine_similarity(x.flatten(), y.flatten(), 0) for x, y in pairs]
    )
    return {
        "cosine": nn.functional.cosine_similarity(a, b, 0).item(),
        "ratio of norms": (a.norm() / b.norm()).item(),
        "gradient_norm": b.norm().item(),
        "lowest cosine of a matrix": each.min().item(),
        "median cosine of a matrix": each.median().item(),
    }


def leave_inputs(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


class Prefix(nn.Module):
    """A block that is compiled where it leaves no gradient."""

    def __init__(self, block: nn.Module, backend: str):
        super().__init__()
        self.block = block
        self.quick: Any = torch.compile(block.forward, backend=backend)

    def forward(self, *values: Any, **named: Any) -> Any:
        call = self.block if torch.is_grad_enabled() else self.quick
        return call(*values, **named)


def compile_prefix(network: Any, device: torch.device) -> None:
    backend = "inductor" if device.type == "cuda" else "eager"
    for blocks in (network.transformer_blocks, network.single_transformer_blocks):
        for place, block in enumerate(blocks):
            blocks[place] = Prefix(block, backend)


class Mark(NamedTuple):
    name: str
    at: Any
    """A CUDA event, or seconds."""


class Stopwatch:
    """Times between marks; on a GPU by events in its queue, so that no mark makes it wait."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks: list[Mark] = []
        if self.cuda:
            torch.cuda.synchronize()
        self.begun = time.perf_counter()
        self.mark("")

    def mark(self, name: str) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(Mark(name, event))
        else:
            self.marks.append(Mark(name, time.perf_counter()))

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds of all, by the clock on the wall, and of each part."""
        if self.cuda:
            torch.cuda.synchronize()
        total = since(self.begun)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return total, {after.name: self._between(before.at, after.at) for before, after in pairs}

    def _between(self, before: Any, after: Any) -> float:
        return before.elapsed_time(after) / 1000 if self.cuda else after - before


def dense_rate(n: int) -> float:
    """Operations a second of an n x n product in bf16, on random numbers."""
    device = this_process().device or torch.device("cpu")
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for number in range(4):
        stopwatch, products = Stopwatch(device), 100 if number else 10
        for _ in range(products):
            torch.mm(a, b)
        rates.append(products * 2 * n**3 / stopwatch.read()[0])
    return statistics.median(rates[1:])


def since(begun: float) -> float:
    return time.perf_counter() - begun


def clean_up() -> None:
    """Give back what nothing holds, and forget the last peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def allocated(device: torch.device) -> float | None:
    """GiB."""
    return torch.cuda.memory_allocated() / GIB if device.type == "cuda" else None


def peaks(device: torch.device) -> dict[str, float | None]:
    """GiB since the last `clean_up`."""
    if device.type != "cuda":
        return {"peak": None, "peak reserved": None}
    return {
        "peak": torch.cuda.max_memory_allocated() / GIB,
        "peak reserved": torch.cuda.max_memory_reserved() / GIB,
    }


def machine() -> dict[str, str]:
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda) if cuda else "-",
    }


# Counted


def counter(config: Config, case: Case) -> Callable[[], dict[str, Any]]:
    """The same step on tensors without contents: TFLOP, and the peak in GiB."""
    shapes = FULL if config.shape == "full" else TINY
    case = fitted(case, config.shape)
    return lambda: count(shapes[case.base], case)


def count(shape: Shape, case: Case) -> dict[str, Any]:
    dry, device = DryRun(), torch.device("cpu")
    model = outline(shape, torch.bfloat16)
    add_lora(model.network, RANK, model.lora_targets(TARGETS), 0)
    outline_quantised(model.network, case.quantise)
    if case.uncast:
        leave_inputs(model.network)
    recompute_blocks(model, case.checkpoint_blocks, case.checkpoint_decoder)
    with torch.device("meta"):
        detector = freeze(SegformerDetector(SegformerConfig(prior=PRIOR, **shape.detector)))
    with dry.counting():
        for part in (model.network, model.vae, detector):
            dry.materialise(part)
        update = Update(lora_parameters(model.network), WEIGHT_DECAY, CLIP)
        moments = [torch.empty_like(weight) for weight in update.weights for _ in range(2)]
        text = conditioning(shape, torch.bfloat16)
    world = World(shape, model, detector, text, update, autocast(device.type, "bf16"))
    schedule, resident = schedule_of(world, case), dry.tally.live  # of real numbers
    with dry.counting():
        accumulate(world, case, schedule, 0, lambda name: None)
    del moments
    peak, flops = dry.tally.peak, dry.tally.flops
    return {"TFLOP": flops / 1e12, "resident": resident / GIB, "peak": peak / GIB}


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.full_size")
