"""Prompt files in; who is learnt from, who is watched and who is pictured, encoded once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from base_models.sample import sample
from core.contracts import Conditioning, DiffusionModel, Images
from core.errors import UserError
from core.prompts import read_prompts
from treat.cache import RowCache
from treat.lora import casts_kept
from treat.offline import cache_prompts

PICTURES = 8


@dataclass(frozen=True)
class Split:
    """Prompts by their use; none that is watched is learnt from."""

    train: list[str]
    held: list[str]
    pictures: list[str]

    @property
    def all(self) -> list[str]:
        return [*self.train, *self.held, *self.pictures]


def split_prompts(
    path: Path, held: int, pictures: Path | None = None, watched_file: Path | None = None
) -> Split:
    """The first `held` lines of a file of their own are watched, or the last of the prompts' file.

    Of the latter at most a fifth. What is watched is nowhere learnt from, however often it stands
    in the file; a file of one prompt is both learnt from and watched.
    """
    prompts = read_prompts(path)
    if watched_file is not None:
        watched = read_prompts(watched_file)[:held]
    else:
        held = min(held, max(1, len(prompts) // 5))
        prompts, watched = prompts[:-held], prompts[-held:]
    train = [prompt for prompt in prompts if prompt not in set(watched)]
    if not train and len(set(prompts + watched)) > 1:
        raise UserError(
            f"every prompt of {path} is watched, and none is left to learn from: give other "
            "watch_prompts, or fewer watch_images."
        )
    shown = read_prompts(pictures) if pictures else watched[:PICTURES]
    return Split(train or watched, watched, shown)


class Texts:
    """The split's prompts with their cached conditioning; rows count through `Split.all`."""

    def __init__(self, split: Split, cache: RowCache, device: torch.device):
        self.split, self.cache, self.device = split, cache, device
        self.prompts = split.all
        ends = len(split.train), len(split.train) + len(split.held)
        self.train, self.held = range(ends[0]), range(*ends)
        self.pictures = range(ends[1], len(self.prompts))

    def said(self, rows: Sequence[int]) -> list[str]:
        return [self.prompts[row] for row in rows]

    def conditioning(self, rows: Sequence[int]) -> Conditioning:
        return self.cache.rows(rows, self.device)


def encode_texts(
    folder: Path, model: DiffusionModel, base: str, split: Split, device: torch.device
) -> Texts:
    return Texts(split, cache_prompts(folder, model, base, split.all), device)


@dataclass(frozen=True)
class Sampler:
    """Rows of the texts and seeds -> images of the model as it stands, on the CPU."""

    model: DiffusionModel
    texts: Texts
    steps: int
    height: int
    width: int
    batch: int
    precision: Callable[[], AbstractContextManager]

    def __call__(self, rows: Sequence[int], seeds: Sequence[int]) -> Images:
        with casts_kept(self.model.network):
            parts = [
                sample(
                    self.model,
                    self.texts.conditioning(rows[at : at + self.batch]),
                    seeds[at : at + self.batch],
                    steps=self.steps,
                    height=self.height,
                    width=self.width,
                    batch=self.batch,
                    precision=self.precision,
                )
                for at in range(0, len(rows), self.batch)
            ]
        return torch.cat(parts)
