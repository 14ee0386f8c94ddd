"""Does a detector's gradient point the way to mend? A minute's answer, before a treatment's ten.

    python -m benchmarks.alignment --detectors miniature/detectors/first miniature/detectors/second

For flagged images of the newest grade: the cosine between the latents' gradient of the detector's
pixel loss and that of the squared distance to the nearest valid image, which only the oracle knows.
Unrelated directions give 0, with a spread of 1 / sqrt(latent values) an image (.02 here).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch import Tensor

import core.config
from base_models.load import load_base
from core.contracts import Detector, DiffusionModel, Images, Latents
from detector.segformer import freeze
from detector.storage import load_detector
from miniature.bases import base_folder
from miniature.law import CATEGORIES
from miniature.oracle import Oracle
from miniature.prompts import category_of, split
from miniature.sample import draw_records, sample_records
from treat.pixel_loss import pixel_loss, straight_through_clamp
from treat.views import Views

Loss = Callable[[Images], Tensor]


class Config(core.config.Config):
    """Which detectors, on how many images."""

    detectors: tuple[Path, ...] = Field(min_length=1)
    """Detector folders."""
    images: int = Field(24, ge=1)
    """Images of each category; the flagged ones count."""
    sampling_steps: int = Field(4, ge=1)
    """T, of the base."""
    views: int = Field(1, ge=1)
    """Perturbed views that each detector looks at (`treat --views`)."""
    seed: int = Field(900, ge=0)
    """Of the images."""


def main(config: Config) -> None:
    detectors: dict[str, Detector] = {
        str(path): freeze(load_detector(path).float()) for path in config.detectors
    }
    newest = str(base_folder("newest"))
    model, oracle = load_base(newest), Oracle()
    n = config.images * len(CATEGORIES)
    records = sample_records(newest, split()["search"], n, config.seed)
    found: dict[str, dict[str, list[float]]] = {
        name: {category: [] for category in CATEGORIES} for name in detectors
    }
    for images, chosen in draw_records(model, records, config.sampling_steps, 20):
        prompts = [record.prompt for record in chosen]
        truth = oracle.diagnose(images, prompts)
        latents = model.encode(images)
        to_valid = gradient(model, latents, lambda x, y=truth.nearest: (x - y).square().mean())
        seeds = [record.seed or 0 for record in chosen]
        for name, detector in detectors.items():
            seen = Views(detector, config.views, seeds)
            pull = gradient(model, latents, lambda x, d=seen: pixel_loss(d(x), "threshold"))
            cosines = torch.cosine_similarity(pull.flatten(1), to_valid.flatten(1))
            for cosine, prompt, flagged in zip(cosines, prompts, truth.flagged, strict=True):
                if flagged:
                    found[name][category_of(prompt)].append(cosine.item())
    Console().print(table(found))


def gradient(model: DiffusionModel, latents: Latents, loss: Loss) -> Float[Tensor, "b c y x"]:
    """Of the loss of the decoded images, at the latents."""
    latents = latents.detach().requires_grad_(True)
    loss(straight_through_clamp(model.decode(latents))).backward()
    assert latents.grad is not None  # the loss depends on them
    return latents.grad


def table(found: dict[str, dict[str, list[float]]]) -> Table:
    """Mean cosine of each category (how many images), and the mean of these."""
    shown = Table(title="Gradient against the way to the nearest valid image (cosine)")
    shown.add_column("detector", no_wrap=True)
    for category, cosines in next(iter(found.values())).items():
        shown.add_column(f"{category} ({len(cosines)})", justify="right")
    shown.add_column("mean", justify="right")
    for name, by_category in found.items():
        means = [sum(values) / len(values) for values in by_category.values() if values]
        cells = [f"{sum(v) / len(v):.3f}" if v else "-" for v in by_category.values()]
        average = f"{sum(means) / len(means):.3f}" if means else "-"
        shown.add_row("/".join(Path(name).parts[-2:]), *cells, average)
    return shown


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.alignment")
