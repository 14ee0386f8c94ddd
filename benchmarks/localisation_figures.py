"""Artifact maps and exact masks in; how well the maps say where, with intervals over images, out.

Pixels of all images are pooled: a count of each image's pixels at every level of its map is all
that average precision and IoU need, so that a resample of images is a sum of counts. A hotspot is
a 4-connected region of at least half of its image's largest value (as of a Grad-CAM, which says
nothing of how sure it is); it matches where it meets a flaw.

Legend: n images, h w pixels, l levels, r bootstrap resamples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from core.contracts import ArtifactMap
from core.seeds import generator, mix

LEVELS = 1024
"""Of a map, equally wide; an even number, so that one begins at the default threshold."""
DEFAULT = 0.5
HOT = 0.5
"""Share of an image's largest value from which a pixel is hot."""
SHIFTS = 10
"""Chance is the mean over so many shifts (or shuffles) of the maps."""
RESAMPLED, SHIFTED = 131, 132
"""What a draw is for; see `core.seeds`."""
CONNECTED = ndimage.generate_binary_structure(3, 1) & np.array([0, 1, 0], bool)[:, None, None]
"""Above, below and beside, within an image."""
Masks = Bool[Tensor, "n h w"]
Pair = Float[np.ndarray, "n 2"]
"""Of each image what matched, and what there was."""


class Counts(NamedTuple):
    """Pixels of each image at or above every level, from the highest level down."""

    seen: Float[np.ndarray, "n l"]
    hits: Float[np.ndarray, "n l"]
    """Those of them that are flawed."""

    @classmethod
    def of(cls, maps: ArtifactMap, truth: Masks) -> "Counts":
        n = len(maps)
        level = (maps.flatten(1) * LEVELS).long().clamp(0, LEVELS - 1)
        level = (LEVELS - 1 - level) + LEVELS * torch.arange(n)[:, None]
        seen = torch.bincount(level.flatten(), minlength=n * LEVELS)
        hits = torch.bincount(level[truth.flatten(1)], minlength=n * LEVELS)
        seen, hits = (x.view(n, LEVELS).cumsum(1).float().numpy() for x in (seen, hits))
        return cls(seen, hits)

    def only(self, rows: np.ndarray) -> "Counts":
        return Counts(self.seen[rows], self.hits[rows])


def average_precision(
    seen: Float[np.ndarray, "r l"], hits: Float[np.ndarray, "r l"]
) -> Float[np.ndarray, " r"]:
    """As `detector.metrics.average_precision`, a level being one step; NaN without a flaw."""
    with np.errstate(invalid="ignore"):
        precision = np.where(seen > 0, hits / np.maximum(seen, 1), 0)
        recall = hits / hits[:, -1:]
    return (np.diff(recall, prepend=0, axis=1) * precision).sum(axis=1)


def overlap(
    seen: Float[np.ndarray, "r l"], hits: Float[np.ndarray, "r l"]
) -> Float[np.ndarray, "r l"]:
    """IoU at every level."""
    return hits / np.maximum(seen + hits[:, -1:] - hits, 1)


def place_of(threshold: float) -> int:
    """Which column holds what is at or above a threshold."""
    return LEVELS - 1 - round(threshold * LEVELS)


def best_threshold(counts: Counts) -> float:
    """Of all images together."""
    curve = overlap(counts.seen.sum(0, keepdims=True), counts.hits.sum(0, keepdims=True))[0]
    return float(LEVELS - 1 - curve.argmax()) / LEVELS


def pixel_figures(counts: Counts, best: float, resamples: int, seed: int) -> dict[str, Any]:
    """Pixel AP, and IoU at the best and at the default threshold, each with its interval.

    The best threshold is held fixed in the resamples.
    """
    drawn = weights(len(counts.seen), resamples, seed)
    seen, hits = drawn @ counts.seen, drawn @ counts.hits
    curves = overlap(seen, hits)
    found = {
        "pixel_ap": average_precision(seen, hits),
        "iou_best": curves[:, place_of(best)],
        "iou_default": curves[:, place_of(DEFAULT)],
    }
    return {name: between(values) for name, values in found.items()}


def weights(n: int, resamples: int, seed: int) -> Float[np.ndarray, "r n"]:
    """How often each image is drawn; the first row is the images themselves."""
    draw = np.random.default_rng(mix(seed, RESAMPLED))
    drawn = draw.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n)), drawn]).astype(np.float32)


def between(values: Float[np.ndarray, " r"]) -> dict[str, Any]:
    """The first value, of the images themselves, and the middle 95 % of the others."""
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return {"value": float(values[0]), "interval": [float(low), float(high)]}


# Hotspots


def hotspots(maps: ArtifactMap) -> Masks:
    """Pixels of at least `HOT` of their image's largest value; none in a map of zeros."""
    highest = maps.amax(dim=(1, 2, 3), keepdim=True)
    return ((maps >= HOT * highest) & (highest > 0))[:, 0]


def met(regions: Masks, others: Masks) -> Pair:
    """Of each image how many connected regions meet any of the others, and how many there are."""
    numbers = np.zeros(regions.shape, np.int32)
    ndimage.label(regions.numpy(), CONNECTED, output=numbers)
    size = int(numbers.max(initial=0)) + 1
    owner, touched = np.zeros(size, int), np.zeros(size)
    owner[numbers] = np.arange(len(regions))[:, None, None]
    touched[numbers[others.numpy()]] = 1
    owner, touched = owner[1:], touched[1:]  # number 0 is no region
    there = np.bincount(owner, minlength=len(regions))
    return np.stack([np.bincount(owner, touched, len(regions)), there], axis=1).astype(float)


def hotspot_figures(
    maps: ArtifactMap, truth: Masks, groups: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """Of the flawed images: hotspots that meet a flaw, flaws that a hotspot meets, and by chance.

    `shifted`: each map moved by a random way, around the borders. `shuffled`: the map of another
    image of the same group, which knows where things usually stand.
    """
    flawed = truth.flatten(1).any(dim=1)
    spots, truth = hotspots(maps)[flawed], truth[flawed]
    names = np.array(groups)[flawed.numpy()]
    found: dict[str, Any] = {"images": len(truth)}
    if not len(truth):
        return found
    drawn = weights(len(truth), resamples, seed)
    chance = [moved(spots, seed, k) for k in range(SHIFTS)]
    strange = [spots[torch.from_numpy(others(names, seed, k))] for k in range(SHIFTS)]
    kinds = {"": [spots], "_shifted": chance, "_shuffled": strange}
    for kind, all_spots in kinds.items():
        matched = np.sum([met(one, truth) for one in all_spots], axis=0)
        flaws = np.sum([met(truth, one) for one in all_spots], axis=0)
        for name, pairs in (("hotspots_met", matched), ("flaws_met", flaws)):
            sums = drawn @ pairs
            with np.errstate(invalid="ignore"):
                found[name + kind] = between(sums[:, 0] / sums[:, 1])
    return found


def moved(masks: Masks, seed: int, k: int) -> Masks:
    """Each rolled by at least a quarter of a side, in either direction."""
    n, h, w = masks.shape
    g = generator(seed, SHIFTED, k)
    down = torch.randint(h // 4, h - h // 4 + 1, (n,), generator=g).tolist()
    across = torch.randint(w // 4, w - w // 4 + 1, (n,), generator=g).tolist()
    ways = zip(masks, down, across, strict=True)
    return torch.stack([mask.roll((y, x), (0, 1)) for mask, y, x in ways])


def others(groups: np.ndarray, seed: int, k: int) -> np.ndarray:
    """For each image another of its group (itself where it is alone)."""
    draw, found = np.random.default_rng(mix(seed, SHIFTED, k)), np.arange(len(groups))
    for group in np.unique(groups):
        rows = draw.permutation(np.flatnonzero(groups == group))
        found[rows] = np.roll(rows, 1)
    return found
