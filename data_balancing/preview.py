"""A store or a labelled folder in, one sheet of pictures out: image, label, and one on the other.

diffdoctor data preview store --out preview.png --category hand
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

import core.config
from core.errors import UserError
from core.heatmap import colourise, overlay
from core.images import AnyPicture, contact_sheet, from_uint8, write_image
from core.samples import Record, Sample
from core.storage import check_file
from detector.data import spread, to_tensors
from detector.sources import open_data

SIDE = 192
"""Longer side, in pixels, of a picture on the sheet."""


class Config(core.config.Config):
    """Look at some samples."""

    data: Annotated[
        tuple[Path, ...], tyro.conf.Positional, core.config.placed("STORE", several=True)
    ] = Field(min_length=1)
    """Stores, or folders with images/ and masks/ (and real/)."""
    out: Path
    """PNG file of the sheet."""
    n: int = Field(24, ge=1, le=200)
    """Samples, spread over all that fit."""
    category: str | None = None
    """Only those of this category."""
    source: str | None = None
    """Only those of this source: human, hard, pseudo, real, procedural."""
    marked: bool = False
    """Only those with anything marked."""


def main(config: Config) -> None:
    if config.out.suffix.lower() != ".png":
        raise UserError(f"{config.out} is to be a picture: name a .png file.")
    check_file(config.out)
    samples, records = open_data(config.data, masked=False)
    fitting = [i for i, record in enumerate(records) if fits(record, config)]
    if config.marked:
        fitting = [i for i in fitting if marked(samples[i])]
    if not fitting:
        raise UserError("no sample fits: give another --category or --source; see `data stats`.")
    chosen = [samples[fitting[i]] for i in spread(len(fitting), config.n)]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_image(config.out, sheet(chosen))
    print(f"{config.out}: {len(chosen)} of {len(fitting)} samples")


def fits(record: Record, config: Config) -> bool:
    return config.category in (None, record.category) and config.source in (None, record.source)


def marked(sample: Sample) -> bool:
    return sample.mask is not None and bool(np.any(sample.mask >= 128))


def sheet(samples: Sequence[Sample]) -> AnyPicture:
    """A row for each; what has no label shows its image alone."""
    rows = [pictures(sample) for sample in samples]
    labels = [said(sample.record) for sample in samples]
    return contact_sheet(rows, labels, ("image", "label", "overlay"))


def pictures(sample: Sample) -> list[AnyPicture]:
    if sample.mask is None:
        return [small(from_uint8(sample.image[None]))[0]]
    image, mask = (small(part) for part in to_tensors([sample]))
    return [image[0], colourise(mask)[0], overlay(image, mask)[0]]


def said(record: Record) -> str:
    words = (record.key, record.source, record.category, record.prompt or record.caption or "")
    return " | ".join(word for word in words if word)[:100]


def small(images: Tensor) -> Tensor:
    scale = SIDE / max(images.shape[-2:])
    if scale >= 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp(0, 1)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m data_balancing.preview")
