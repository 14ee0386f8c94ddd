"""What does the treat step cost over the library calls inside it? Process CPU time, interleaved.

    OMP_NUM_THREADS=1 python -m benchmarks.step_cost --detector DETECTOR_FOLDER --json FILE

`whole` is one update of `treat.train` (drawing, decoding, detector, replay, offline term, clip,
optimizer); `bare` makes the same calls of the modules of diffusers and transformers on the tensors
that `whole` gave them, and nothing else. Both run in turn; the ratio is that of the medians.
`--base sdxl --steps 20 --last 5 --batch 4` measures another family.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

import core.config
from base_models.load import load_base
from core.run import plain
from core.storage import write_atomic
from detector.segformer import SegformerDetector, freeze
from detector.storage import load_detector
from miniature.bases import DETECTORS, base_folder
from miniature.prompts import balanced, split
from treat.lora import add_lora, lora_parameters
from treat.step import Chain, draw, latent_gradient, replay
from treat.terms import RewardTerm
from treat.update import Update


class Config(core.config.Config):
    """Which model, and how often."""

    base: str = "newest"
    """A base of the miniature by name, or a pipeline folder."""
    detector: Path = DETECTORS / "first"
    """Its folder."""
    repeats: int = Field(20, ge=1)
    """Steps of either kind."""
    batch: int = Field(16, ge=1)
    """Images of a step."""
    steps: int = Field(4, ge=1)
    """T."""
    last: int = Field(1, ge=1)
    """K."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


class Call(NamedTuple):
    """Of the network: with gradient or not, and what it was given."""

    learns: bool
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]


class Bench:
    """One model with adapters, and everything that both ways of calling it need."""

    def __init__(self, config: Config):
        self.model: Any = load_base(str(base_folder(config.base)))
        add_lora(self.model.network, 16, self.model.lora_targets("attention+mlp"), 0)
        self.detector: SegformerDetector = freeze(load_detector(config.detector))
        prompts = balanced(split()["train"], config.batch, 0)
        self.text = self.model.encode_prompts(prompts)
        self.schedule = self.model.schedule(config.steps, 64, 64)
        self.weights = lora_parameters(self.model.network)
        self.update = Update(self.weights, 0.1, 5.0)
        self.seeds = list(range(config.batch))
        self.clean = self.model.noise(self.seeds, 64, 64)
        self.last = config.last
        self.calls = self.heard()

    def whole(self) -> None:
        noise = self.model.noise(self.seeds, 64, 64)
        chain = Chain(self.model, self.schedule, self.text)
        steps = chain.schedule.steps
        latents, tape = draw(chain, noise, range(steps - self.last, steps))
        term = RewardTerm(1.0, "area", 0.1, self.detector)
        replay(chain, tape, latent_gradient(chain, latents, term))
        (self.model.offline_loss(self.clean, self.text, self.seeds) * 0.25).backward()
        self.update.collect(1.0, {})
        self.update.apply(1, 0, False, 1e-4)

    def bare(self) -> None:
        for call in self.calls:
            with torch.set_grad_enabled(call.learns):
                v = self.model.network(*leaves(call.arguments), **call.named)[0]
            if call.learns:
                v.backward(torch.ones_like(v))
        z = self.clean.clone().requires_grad_()
        image = self.model.vae.decode(z, return_dict=False)[0]
        image.backward(torch.ones_like(image))
        pixels = image.detach().requires_grad_()
        logits = self.detector.logits(pixels)
        logits.backward(torch.ones_like(logits))
        torch.nn.utils.clip_grad_norm_(self.weights, 5.0, foreach=False)
        self.update.optimizer.step()
        self.update.optimizer.zero_grad()

    def heard(self) -> list[Call]:
        """What one whole update calls the network with."""
        calls: list[Call] = []

        def take_down(_: Any, arguments: tuple, named: Mapping[str, Any]) -> None:
            calls.append(Call(torch.is_grad_enabled(), arguments, named))

        handle = self.model.network.register_forward_pre_hook(take_down, with_kwargs=True)
        self.whole()
        handle.remove()
        return calls


def leaves(values: Iterable[Any]) -> list[Any]:
    """Tensors as leaves of a graph of their own."""
    found = []
    for value in values:
        own = isinstance(value, Tensor)
        found.append(value.detach().requires_grad_(value.requires_grad) if own else value)
    return found


def main(config: Config) -> None:
    bench = Bench(config)
    seconds: dict[str, list[float]] = {"whole": [], "bare": []}
    for turn in range(config.repeats + 1):
        for name, call in (("whole", bench.whole), ("bare", bench.bare)):
            spent = cpu_seconds(call)
            if turn:  # the first warms up
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    found = {**medians, "ratio": medians["whole"] / medians["bare"], "repeats": config.repeats}
    print({name: round(value, 3) for name, value in found.items()})
    if config.json_file:
        text = json.dumps(plain({**found, "seconds": seconds}), indent=2) + "\n"
        write_atomic(config.json_file, text.encode())


def cpu_seconds(call: Callable[[], None]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.step_cost")
