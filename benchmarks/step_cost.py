"""What does the treat step cost over the library calls inside it? Process CPU time, interleaved.

    OMP_NUM_THREADS=1 python -m benchmarks.step_cost --detector DETECTOR_FOLDER --json FILE

`whole` is one update of `treat.train` (drawing, decoding, detector, replay, offline term, clip,
optimizer); `bare` calls the same modules of diffusers and transformers on tensors of the same
shapes, and nothing else. Both run in turn; the ratio is that of the medians.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import core.config
from base_models.flux import pack, token_places
from base_models.load import load_base
from core.contracts import Latents
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
    detector: Path = DETECTORS / "first"
    repeats: int = Field(20, ge=1)
    batch: int = Field(16, ge=1)
    steps: int = Field(4, ge=1)
    """T."""
    last: int = Field(1, ge=1)
    """K."""
    json_file: core.config.JsonFile = None


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
        latents = self.clean
        for _ in self.schedule.timesteps:
            with torch.no_grad():
                self.velocity(latents)
        z = latents.clone().requires_grad_()
        image = self.model.vae.decode(z, return_dict=False)[0]
        image.backward(torch.ones_like(image))
        pixels = image.detach().requires_grad_()
        logits = self.detector.logits(pixels)
        logits.backward(torch.ones_like(logits))
        for _ in range(self.last + 1):  # the replayed steps and the offline term
            v = self.velocity(latents)
            v.backward(torch.ones_like(v))
        torch.nn.utils.clip_grad_norm_(self.weights, 5.0, foreach=False)
        self.update.optimizer.step()
        self.update.optimizer.zero_grad()

    def velocity(self, latents: Latents) -> Tensor:
        b, _, y, x = latents.shape
        return self.model.network(
            hidden_states=pack(latents),
            timestep=torch.full((b,), 0.5),
            pooled_projections=self.text["pooled"],
            encoder_hidden_states=self.text["text"],
            txt_ids=torch.zeros(self.text["text"].shape[1], 3),
            img_ids=token_places(y // 2, x // 2),
            return_dict=False,
        )[0]


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
