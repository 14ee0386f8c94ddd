"""How much of an update is signal? By the number of learning steps, by gamma and by selection.

    python -m benchmarks.gradient_noise
    python -m benchmarks.gradient_noise --detectors miniature/detectors/first --threshold 0.5 \
        --last 3 --gammas 0 --selections threshold root area --batches 32

Many batches of the newest grade, each with its gradient of the untouched adapters. If batches of b
images have the mean mu and the variance sigma^2 (summed over the weights), |mu|^2 / sigma^2 says
what one update knows of where to go; 1 / ratio updates point as far as they scatter (the gradient
noise scale of McCandlish et al. 2018, arXiv 1812.06162, section 2.2, over b). Both are unbiased
estimates; a ratio at or below zero is one too small to be seen in so many batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import core.config
from base_models.load import load_base
from core.seeds import mix
from detector.segformer import freeze
from detector.storage import load_detector
from miniature.bases import base_folder
from miniature.ceiling import Ceiling
from miniature.law import SIZE
from miniature.prompts import balanced, split
from treat.lora import add_lora
from treat.settings import Selection
from treat.step import Chain, draw, latent_gradient, replay
from treat.terms import RewardTerm
from treat.watch import DetectorFor, always

CEILING_THRESHOLD = 0.1
"""Of the oracle's own reward, whose map is a distance and no probability."""


class Config(core.config.Config):
    """Which rewards, how many batches; K, gamma and the selection are the menu."""

    detectors: tuple[Path, ...] = ()
    """Detector folders, beside the oracle's own reward (`miniature.ceiling`)."""
    batches: int = Field(16, ge=2)
    """Gradients that are taken of each setting."""
    batch: int = Field(16, ge=1)
    """Images of a gradient."""
    sampling_steps: int = Field(4, ge=1)
    """T."""
    last: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 3), min_length=1)
    """Numbers of steps that carry gradient (`treat --last`)."""
    gammas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((0.0, 0.3, 1.0), min_length=1)
    """Shares of the gradient that pass the network's input (`treat --gamma`)."""
    selections: tuple[Selection, ...] = Field(("threshold",), min_length=1)
    """Which pixels count (`treat --selection`)."""
    threshold: float = Field(0.1, ge=0, lt=1)
    """Of the detectors; the ceiling keeps its own."""
    seed: int = Field(9, ge=0)
    """Of the images."""

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if max(self.last) > self.sampling_steps:
            raise ValueError(f"last is {max(self.last)}, more than {self.sampling_steps} steps")
        return self


class Row(NamedTuple):
    """One line of the table."""

    reward: str
    selection: str
    last: int
    gamma: float


@dataclass(frozen=True)
class Noise:
    """Of the gradients of one batch: |mu|^2 and sigma^2."""

    signal: float
    noise: float


def main(config: Config) -> None:
    found: dict[Row, list[Tensor]] = {}
    for row, gradient in tqdm(gradients(config), "gradients"):
        found.setdefault(row, []).append(gradient)
    Console().print(table({key: noise_of(torch.stack(rows)) for key, rows in found.items()}))


def gradients(config: Config) -> Iterator[tuple[Row, Float[Tensor, " weights"]]]:
    """The flat gradients, batch by batch."""
    base = str(base_folder("newest"))
    model = load_base(base)
    add_lora(model.network, 16, model.lora_targets("attention+mlp"), config.seed)
    # A's gradient is zero while B is.
    weights = [w for name, w in model.network.named_parameters() if ".lora_B." in name]
    detectors: dict[str, DetectorFor] = {"ceiling": Ceiling}
    for path in config.detectors:
        detectors[str(path)] = always(freeze(load_detector(path).float()))
    said = balanced(split()["search"], config.batches * config.batch, config.seed)
    schedule = model.schedule(config.sampling_steps, SIZE, SIZE)
    for number in range(config.batches):
        prompts = said[number * config.batch :][: config.batch]
        seeds = [mix(config.seed, number, i) for i in range(config.batch)]
        noise, text = model.noise(seeds, SIZE, SIZE), model.encode_prompts(prompts)
        learning = range(config.sampling_steps - max(config.last), config.sampling_steps)
        final, tape = draw(Chain(model, schedule, text), noise, learning)
        for (name, reward), selection in product(detectors.items(), config.selections):
            threshold = CEILING_THRESHOLD if name == "ceiling" else config.threshold
            term = RewardTerm(1.0, selection, threshold, reward(prompts))
            pull = latent_gradient(Chain(model, schedule, text), final, term)
            for last in config.last:
                for gamma in config.gammas if last > 1 else config.gammas[:1]:
                    replay(Chain(model, schedule, text, gamma), tape[-last:], pull)
                    pieces = [w.grad.flatten() for w in weights if w.grad is not None]
                    yield Row(name, selection, last, gamma), torch.cat(pieces)
                    model.network.zero_grad(set_to_none=True)


def noise_of(rows: Float[Tensor, "batches weights"]) -> Noise:
    """Unbiased: E|mean of n|^2 = |mu|^2 + sigma^2 / n."""
    n = len(rows)
    variance = rows.var(dim=0).sum().item()
    return Noise(rows.mean(dim=0).square().sum().item() - variance / n, variance)


def table(found: dict[Row, Noise]) -> Table:
    shown = Table(title="Gradient of the adapters, one batch")
    shown.add_column("reward", no_wrap=True)
    for name in ("selection", "K", "gamma", "|mu|", "sigma", "|mu|^2 / sigma^2"):
        shown.add_column(name, justify="right")
    for row, one in found.items():
        size = max(one.signal, 0.0) ** 0.5
        shown.add_row(
            "/".join(Path(row.reward).parts[-2:]),
            row.selection,
            str(row.last),
            f"{row.gamma:g}" if row.last > 1 else "-",
            f"{size:.4f}",
            f"{one.noise**0.5:.4f}",
            f"{one.signal / one.noise:.3f}",
        )
    return shown


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.gradient_noise")
