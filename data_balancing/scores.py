"""A store and a detector in, how sure the detector is of each image out; remembered by content.

Legend: h w pixels.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from core.contracts import ArtifactMap, Detector
from core.heatmap import Map
from core.images import Picture, from_uint8
from core.samples import Sample
from core.shards import ShardStore
from core.storage import append_line, read_lines
from data_balancing.looks import pixels as pixel_digest
from detector.measure import predict


class Score(BaseModel):
    """What a detector says of one image."""

    model_config = ConfigDict(frozen=True)

    pixels: str
    max: float
    mean: float
    area: float
    """Share of the pixels at or above the threshold."""


class Scored(NamedTuple):
    """An image of the store with its score."""

    key: str
    prompt: str
    sound: bool
    """A photograph, or labelled without any artifact."""
    score: Score


class Scanner:
    """Scores images; those in `memory` of this detector, size and threshold are not seen again."""

    def __init__(
        self, detector: Detector, digest: str, memory: Path, *, threshold: float, size: int | None
    ):
        self.detector, self.memory, self.threshold, self.size = detector, memory, threshold, size
        self.how = {"detector": digest, "size": size, "threshold": threshold}
        found = filter(None, (_known(line, self.how) for line in read_lines(memory)))
        self._known = {score.pixels: score for score in found}

    def scan(self, store: ShardStore, batch: int) -> Iterator[Scored]:
        """Every image in the store's order."""
        for start in tqdm(range(0, len(store), batch), "look", unit_scale=batch):
            samples = [store[i] for i in range(start, min(start + batch, len(store)))]
            pixels = [pixel_digest(sample.image) for sample in samples]
            self._look(dict(zip(pixels, samples, strict=True)), batch)
            for sample, name in zip(samples, pixels, strict=True):
                sound = is_sound(sample)
                yield Scored(sample.key, sample.record.prompt, sound, self._known[name])

    def map(self, image: np.ndarray) -> tuple[Picture, Map]:
        """An image (h, w, 3) as the detector sees it, and its map."""
        seen = _sized(image, self.size)
        return seen, predict(self.detector, seen[None], 1)[0]

    def _look(self, samples: dict[str, Sample], batch: int) -> None:
        """Score what is new, and keep it in one write."""
        new = {name: _sized(s.image, self.size) for name, s in samples.items()
               if name not in self._known}  # fmt: skip
        if not new:
            return
        names, maps = list(new), _maps(self.detector, list(new.values()), batch)
        scores = [_score(name, map, self.threshold) for name, map in zip(names, maps, strict=True)]
        lines = [json.dumps(score.model_dump() | self.how) for score in scores]
        append_line(self.memory, "\n".join(lines))
        self._known |= {score.pixels: score for score in scores}


def is_sound(sample: Sample) -> bool:
    if sample.mask is not None:
        return not sample.mask.any()
    return sample.record.source == "real"


def _known(line: dict[str, Any], how: dict[str, Any]) -> Score | None:
    if any(line.get(name, "") != value for name, value in how.items()):
        return None
    try:
        return Score.model_validate(line)
    except ValidationError:
        return None


def _sized(image: np.ndarray, size: int | None) -> Picture:
    picture: Tensor = from_uint8(image[None])
    if size is not None and picture.shape[-2:] != (size, size):
        picture = F.interpolate(picture, size=(size, size), mode="bilinear", antialias=True)
    return picture[0].clamp(0, 1)


def _maps(detector: Detector, pictures: Sequence[Picture], batch: int) -> list[Tensor]:
    """One map (1, h, w) a picture; together where all have one size."""
    if len({picture.shape for picture in pictures}) == 1:
        return list(predict(detector, torch.stack(list(pictures)), batch))
    return [_first(predict(detector, picture[None], 1)) for picture in pictures]


def _first(maps: ArtifactMap) -> Map:
    return maps[0]


def _score(pixels: str, map: Map, threshold: float) -> Score:
    area = (map >= threshold).float().mean().item()
    return Score(pixels=pixels, max=map.max().item(), mean=map.mean().item(), area=area)
