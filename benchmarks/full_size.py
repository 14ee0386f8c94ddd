"""What does one treat step take at full size, on the GPU that is there? Seconds, and GiB.

    python -m benchmarks.full_size --json full_size.json
    python -m benchmarks.full_size --shape tiny  # every case, quickly, on a CPU

The bases have their true shapes and random weights (`benchmarks.full_shapes`); one step is one
update of `treat.train` (`benchmarks.full_step`): drawing, reward, learning, in two cases the
offline term, optimizer; 1024 pixels, bf16. Cases come the most important first. One that fails is
recorded, and the next begins. After the budget of seconds none begins, and the one under way ends
with its first timed step at the earliest, a comparison when it is done. GiB are those of tensors
("peak") and of what the allocator took ("peak reserved"); the device's own context adds about half
a GiB.
"""

import json
import math
import statistics
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import core.config
from base_models.checkpointing import recompute_blocks
from base_models.compilation import compile_blocks
from base_models.names import Quantisation
from benchmarks.full_step import (
    SHAPES,
    Case,
    World,
    accumulate,
    build,
    chosen,
    fitted,
    in_fp32,
    schedule_of,
)
from benchmarks.stopwatch import (
    Stopwatch,
    allocated,
    clean_up,
    dense_rate,
    machine,
    peaks,
    since,
)
from core.contracts import Schedule
from core.errors import UserError
from core.processes import this_process
from core.run import plain
from core.seeds import generator
from core.storage import write_atomic

RATE = 1e-4


class Config(core.config.Config):
    """Which shapes, which cases, how long."""

    shape: Literal["full", "tiny"] = "full"
    """`tiny` runs every case quickly, on a CPU too."""
    seconds: float = Field(150.0, gt=0)
    """After so many no further case is begun."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the frozen weights, and of what is computed."""
    repeats: int = Field(3, ge=1)
    """Timed steps of a case, after one that is not."""
    only: tuple[str, ...] = ()
    """Names of cases, each in quotes; an unknown one lists them all."""
    compiled: bool = False
    """Also try FLUX with its blocks compiled; takes a minute."""
    json_file: core.config.JsonFile = None
    """Also write what is found to this file, after every case."""


def main(config: Config) -> None:
    begun, cases = time.perf_counter(), chosen(config.only, config.compiled)
    found: dict[str, Any] = {"machine": machine(), "shape": config.shape, "cases": {}}
    if config.shape == "full" and not torch.cuda.is_available():
        raise UserError("Full size needs a CUDA device: take --shape tiny, or only count "
                        "(python -m benchmarks.full_count).")  # fmt: skip
    torch.backends.cuda.enable_cudnn_sdp(False)  # as in `load_base`, for its reason
    device = this_process().device or torch.device("cpu")
    n = 8192 if config.shape == "full" else 128
    found["dense product"] = attempt(lambda: {"TFLOP/s": dense_rate(n, device) / 1e12})
    print(f"dense product in bf16: {shown(found['dense product'])}", flush=True)
    bench = Bench(config, device, found["dense product"].get("TFLOP/s", math.nan), begun)
    for case in cases:
        late = since(begun) > config.seconds
        row = {"left out": "no time left"} if late else attempt(partial(bench.measure, case))
        found["cases"][case.name] = row
        found["elapsed"] = since(begun)
        print(f"{found['elapsed']:6.1f} s  {case.name}: {shown(row)}", flush=True)
        if config.json_file:
            text = json.dumps(plain(found), indent=2) + "\n"
            write_atomic(config.json_file, text.encode())


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it finds, or the error that ended it and the peak until then."""
    try:
        return measure()
    except Exception as error:  # whatever it is, the next case is still worth its time
        where = traceback.format_exc(limit=-4)
        row = {"error": f"{type(error).__name__}: {error}"[:2000], "where": where[-4000:]}
        return row | peaks()


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


class Bench:
    """Cases measured in turn; a base stays for the next case that can use it."""

    def __init__(self, config: Config, device: torch.device, dense: float, begun: float):
        self.config, self.device, self.dense = config, device, dense
        self.until = begun + config.seconds
        self.shapes = SHAPES[config.shape]
        self.known: tuple[str, Quantisation] | None = None
        self.world: World | None = None

    def measure(self, case: Case) -> dict[str, Any]:
        case = fitted(case, self.config.shape)
        try:
            return self.compare(case) if case.compared else self.timed(case)
        except Exception:
            self.known = None  # what is half done must not stand in the next one's way
            raise

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
        row["resident"] = allocated()
        schedule = schedule_of(world, case)
        if case.compiled:
            backend = "inductor" if self.device.type == "cuda" else "eager"
            compile_blocks(world.model.network, backend)
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
        if case.compiled:
            self.forget()  # its blocks are no longer what they were
        return row

    def summary(
        self, case: Case, seconds: list[float], phases: list[dict[str, float]]
    ) -> dict[str, Any]:
        median = statistics.median(seconds)
        row: dict[str, Any] = {"median": median, "seconds": seconds}
        row["phases"] = {p: statistics.median([one[p] for one in phases]) for p in phases[0]}
        if case.tflop and self.config.shape == "full":
            row |= {"TFLOP": case.tflop, "of dense": case.tflop / median / self.dense}
        return row | peaks()

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
        row |= peaks()
        self.forget()  # it is in fp32 now
        return row


def take_step(
    world: World, case: Case, schedule: Schedule, number: int, stopwatch: Stopwatch
) -> dict[str, Any]:
    """One update; its loss and the norm of its gradient."""
    pixel = accumulate(world, case, schedule, number, stopwatch.mark)
    world.update.collect(1.0, {"pixel": pixel})
    figures = world.update.apply(number + 1, 0, False, RATE)
    stopwatch.mark("optimizer")
    return {name: figures[name] for name in ("pixel", "gradient_norm", "skipped")}


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


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.full_size")
