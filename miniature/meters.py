"""Meters of collapse, exact in this world: images and prompts in, what they show and how varied.

A table is a plain dict of arrays, one row an image, as `treat.figures` reads it: floats are
figures, texts are groups, integers are factors (the index of a value, -1 where the category lacks
the factor). `stated.<category>.<factor>` is named by prompts, `free.<category>.<factor>` is not;
the pose is free, each coordinate by the nearest value of the law's grid. Legend: b n images.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from core.contracts import ArtifactMap, Images
from miniature.law import CATEGORIES, POSE
from miniature.oracle import Diagnosis, Oracle
from miniature.prompts import category_of, stated

NAME = "the oracle of the miniature (nearest valid image)"
LUMA = (0.299, 0.587, 0.114)
"""Rec. 601 weights of red, green and blue."""
Table = Mapping[str, Any]


class Bench:
    """One oracle behind the three questions of `treat.evaluate.main`; it looks once a batch."""

    def __init__(self, diagnose: Callable[[Images, Sequence[str]], Diagnosis] | None = None):
        self.diagnose = diagnose or Oracle().diagnose
        self._last: tuple[Tensor, tuple[str, ...], Diagnosis] | None = None

    def judge(self, images: Images, prompts: Sequence[str]) -> ArtifactMap:
        return self.diagnosis(images, prompts).map

    def flagged(self, images: Images, prompts: Sequence[str]) -> Bool[np.ndarray, " b"]:
        """True where the calibrated rule (a blob of `BLOB` pixels) finds an artifact."""
        return self.diagnosis(images, prompts).flagged.numpy()

    def meters(self, images: Images, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Category, attribute match, sharpness and every factor as the nearest image shows it."""
        found = self.diagnosis(images, prompts)
        return {
            "category": np.array([category_of(prompt) for prompt in prompts]),
            "attribute_match": attribute_match(prompts, found.factors),
            "sharpness": sharpness(images),
        } | factor_table(prompts, found)

    def diagnosis(self, images: Images, prompts: Sequence[str]) -> Diagnosis:
        last = self._last
        if last is None or last[1] != tuple(prompts) or not torch.equal(last[0], images):
            found = self.diagnose(images, prompts)
            # A copy: whoever writes into the images in place must not be shown the old findings.
            self._last = last = images.clone(), tuple(prompts), found
        return last[2]


def attribute_match(
    prompts: Sequence[str], shown: Sequence[Mapping[str, str]]
) -> Float[np.ndarray, " b"]:
    """Share of each prompt's stated factors that the nearest valid image shows."""
    match = [
        np.mean([factors[name] == value for name, value in stated(prompt).items()])
        for prompt, factors in zip(prompts, shown, strict=True)
    ]
    return np.array(match, float)


def sharpness(images: Images) -> Float[np.ndarray, " b"]:
    """Mean absolute Laplacian of the luma, inside a border of one pixel."""
    luma = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
    kernel = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(luma, kernel).abs().mean(dim=(1, 2, 3)).cpu().numpy().astype(float)


def factor_table(prompts: Sequence[str], found: Diagnosis) -> dict[str, np.ndarray]:
    """Every factor of every category as one column; -1 for the images of other categories."""
    names = np.array([category_of(prompt) for prompt in prompts])
    columns = {}
    for category, law in CATEGORIES.items():
        here = names == category
        for name, values in law.factors.items():
            kind = "stated" if name in law.stated else "free"
            read = [
                values.index(shown[name]) if mine else -1
                for shown, mine in zip(found.factors, here, strict=True)
            ]
            columns[f"{kind}.{category}.{name}"] = np.array(read, int)
        for i, (name, grid) in enumerate(zip(POSE, law.grid, strict=True)):
            if len(grid) > 1:
                near = (found.pose[:, i, None] - torch.tensor(grid)).abs().argmin(dim=1)
                columns[f"free.{category}.{name}"] = np.where(here, near.numpy(), -1)
    return columns


def values_of(factor: str) -> tuple[str, ...]:
    """The names of a column's values: the law's, or its grid's poses."""
    _, category, name = factor.split(".")
    law = CATEGORIES[category]
    return law.factors.get(name) or tuple(f"{pose:g}" for pose in law.grid[POSE.index(name)])


# Of sets of images


def factor_names(table: Table, kind: str = "") -> list[str]:
    """The columns that are factors, of one kind (`free`, `stated`) or all."""
    known = [name for name in table if name.split(".")[0] in ("free", "stated")]
    return [name for name in known if name.startswith(kind)]


def marginals(table: Table) -> dict[str, Float[np.ndarray, " values"]]:
    """The share of each value among the images that have the factor; factors of none left out."""
    shares = {}
    for name in factor_names(table):
        read = np.asarray(table[name])
        read = read[read >= 0]
        if len(read):
            shares[name] = np.bincount(read, minlength=len(values_of(name))) / len(read)
    return shares


def drift(table: Table, base: Table) -> tuple[str, str, float]:
    """The factor's value whose share left the law furthest: name, value, share gained or lost.

    The law's values are equally frequent, and a base's need not be. What lies between the base's
    share and the law's is no drift: an image that is mended into any valid one alike goes there.
    What counts is how far a share stands outside of that interval; of what prompts state, all.
    """
    worst, before = ("", "", 0.0), marginals(base)
    for name, shares in marginals(table).items():
        law = np.full(len(shares), 1 / len(shares)) if name.startswith("free.") else before[name]
        ends = np.stack([before[name], law])
        outside = shares - shares.clip(ends.min(axis=0), ends.max(axis=0))
        for value, gone in zip(values_of(name), outside.tolist(), strict=True):
            if abs(gone) > abs(worst[2]):
                worst = name, value, gone
    return worst


def entropy(table: Table) -> float:
    """Mean entropy of the unstated factors, 1 where all their values are equally frequent.

    Averaged within each category, then over the categories that occur. NaN without images.
    """
    by_category: dict[str, list[float]] = {}
    for name, shares in marginals(table).items():
        if name.startswith("free."):
            bits = -(shares * np.log(np.maximum(shares, 1e-12))).sum() / np.log(len(shares))
            by_category.setdefault(name.split(".")[1], []).append(float(bits))
    return float(np.mean([np.mean(all_) for all_ in by_category.values()] or [np.nan]))


def coverage(table: Table) -> float:
    """Different combinations of unstated values, as a share of what as many uniform draws show.

    1 for images as varied as the law's own, towards 0 for one image again and again; averaged
    over the categories that occur. NaN without images.
    """
    shares = []
    for category in CATEGORIES:
        names = factor_names(table, f"free.{category}.")
        rows = np.stack([np.asarray(table[name]) for name in names], axis=1)
        rows = rows[(rows >= 0).all(axis=1)]
        if len(rows):
            cells = np.prod([float(len(values_of(name))) for name in names])
            expected = cells * (1 - (1 - 1 / cells) ** len(rows))
            shares.append(len(np.unique(rows, axis=0)) / expected)
    return float(np.mean(shares or [np.nan]))
