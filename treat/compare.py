"""Real images and sets of generated ones in; FID, KID, precision, recall and coverage out.

    diffdoctor compare renders/images runs/asced/images/base runs/asced/images/asced \
        --features miniature/features

The figures are those of the feature network, whose name stands in every output: only with
Inception's published weights do they compare with published ones. The same number of images in
every set compares them fairly: FID and recall move with it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Float
from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import core.config
from core.run import plain
from core.storage import write_atomic
from detector.features import Features, open_features
from detector.measure import device
from detector.set_metrics import (
    NEIGHBOURS,
    SURROUNDING,
    Fid,
    check_neighbours,
    covered,
    inside,
    interval,
    kid,
    resamples,
)
from treat import figures
from treat.offline import RealImages, read_offline

METHOD = (
    "FID: 95 % by 1.96 deviations of its resamples; precision: 95 % percentile bootstrap over "
    "generated images, recall and coverage: over real ones; KID: mean and deviation over subsets"
)


class Config(core.config.Config):
    """How far sets of generated images lie from real ones."""

    real: Annotated[Path, tyro.conf.Positional, core.config.placed("REAL")]
    """Real images: a folder, shards or Parquet files."""
    generated: Annotated[
        tuple[Path, ...], tyro.conf.Positional, core.config.placed("GENERATED", several=True)
    ] = Field(min_length=1)
    """Sets to compare with them, each likewise."""
    features: str
    """What looks at the images: a folder with features.json (miniature/features), a folder of a
    timm network (config.json and weights), NAME=FILE of torchvision (resnet50=resnet50.pth), or a
    TorchScript file (inception-2015-12-05.pt)."""
    k: int = Field(NEIGHBOURS, ge=1)
    """Neighbours of precision and recall; the paper's 3. Coverage has its own paper's 5."""
    resamples: int = Field(200, ge=0)
    """Of FID's interval; with Inception's 2,048 features each takes seconds, 0 leaves it out."""
    limit: int | None = Field(None, ge=2)
    """At most so many images of each set: the first."""
    batch: int = Field(64, ge=1)
    """Images that the network sees at once."""
    device: str = "auto"
    """`auto`, or a torch device."""
    seed: int = Field(0, ge=0)
    """Of resamples and subsets."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    """Look, compare, print."""
    network = open_features(config.features).to(device(config.device))
    sets = [read_offline(path, config.limit, False) for path in (config.real, *config.generated)]
    for own in sets:
        check_neighbours(own, config.k)
    check_neighbours(sets[0], SURROUNDING)
    vectors = [
        vectors_of(network, images, config.batch, path.name)
        for images, path in zip(sets, (config.real, *config.generated), strict=True)
    ]
    real, fewest = vectors[0], min(map(len, vectors))
    if fewest <= real.shape[1]:
        print(f"warn: {fewest} images and {real.shape[1]} features: FID says little, give more.",
              file=sys.stderr)  # fmt: skip
    fid, rows = Fid(real), {}
    for path, own in zip(config.generated, vectors[1:], strict=True):
        rows[str(path)] = compared(real, own, fid, config.k, config.resamples, config.seed)
    found = {
        "features": {"name": network.name, "sha256": network.digest, "width": real.shape[1]},
        "real": {"path": str(config.real), "images": len(real)},
        "neighbours": config.k,
        "neighbours of coverage": SURROUNDING,
        "method": METHOD,
        "sets": rows,
    }
    if config.json_file is not None:
        write_atomic(config.json_file, (json.dumps(plain(found), indent=2) + "\n").encode())
    Console(width=max(140, Console().width)).print(table(found))


def vectors_of(
    network: Features, images: RealImages, batch: int, name: str
) -> Float[Tensor, "n d"]:
    """Of all images, on the CPU; those of one batch may differ in size."""
    place, found = network.mean.device, []
    for at in tqdm(range(0, len(images), batch), f"look at {name}"):
        pictures = [images.picture(i) for i in range(at, min(at + batch, len(images)))]
        alike = len({picture.shape for picture in pictures}) == 1
        for group in [torch.cat(pictures)] if alike else pictures:
            found.append(network(group.to(place)).cpu())
    return torch.cat(found)


def compared(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m d"],
    fid: Fid,
    k: int,
    number: int,
    seed: int,
) -> dict[str, Any]:
    """All figures of one set, each with its interval."""
    value = fid(generated)
    draws = [fid(generated[rows]) for rows in resamples(len(generated), number, seed)]
    mean, deviation = kid(real, generated, seed)
    shares = {"precision": inside(generated, real, k), "recall": inside(real, generated, k)}
    shares["coverage"] = covered(real, generated)
    summaries = {name: figures.summarise({name: hits}, seed) for name, hits in shares.items()}
    return {
        "images": len(generated),
        "fid": value,
        "kid": mean,
        "kid_deviation": deviation,
        **{name: summary[name] for name, summary in summaries.items()},
        "interval": {
            "fid": interval(value, draws),
            **{name: summary["interval"][name] for name, summary in summaries.items()},
        },
    }


def table(found: dict[str, Any]) -> Table:
    """One row a set."""
    name, real = found["features"]["name"], found["real"]
    shown = Table(title=f"{name}; {real['images']:,} real images of {real['path']}")
    shown.add_column("set", overflow="fold")
    for title in ("images", f"FID ({name})", "KID x1000", "precision", "recall", "coverage"):
        shown.add_column(title, justify="right")
    for path, row in found["sets"].items():
        ends = row["interval"]
        shown.add_row(
            path,
            f"{row['images']:,}",
            with_ends(row["fid"], ends["fid"], ".4g"),
            f"{1000 * row['kid']:.4g}\n± {1000 * row['kid_deviation']:.2g}",
            with_ends(row["precision"], ends["precision"], ".3f"),
            with_ends(row["recall"], ends["recall"], ".3f"),
            with_ends(row["coverage"], ends["coverage"], ".3f"),
        )
    return shown


def with_ends(value: float, ends: Sequence[float] | None, style: str) -> str:
    """The value, and below it its interval."""
    return f"{value:{style}}" + (f"\n\\[{ends[0]:{style}}..{ends[1]:{style}}]" if ends else "")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor compare")
