"""Per-image figures of several arms in, means and paired differences with intervals out.

Legend: n images (one prompt and one seed each), f figures, r bootstrap resamples.
An arm's table is a plain dict: floats and booleans are figures, integers are factors (a class
index, -1 where it does not apply), texts are groups such as the category. Factors whose name
begins with `free.` are those that no prompt states: their entropy measures diversity.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from core.contracts import ArtifactMap, Images
from core.run import plain
from core.seeds import mix

Table = Mapping[str, np.ndarray]
RESAMPLES = 10_000
CHUNK = 500
"""Resamples drawn at once: 500 x 1,000 counts are 4 MB."""
METHOD = (
    "95 % percentile interval of a paired bootstrap over images (same prompt, same seed), "
    f"{RESAMPLES:,} seeded resamples"
)


def sharpness(images: Images) -> Float[np.ndarray, " b"]:
    """Mean absolute difference between neighbouring pixels of the luminance, per image."""
    gray = images.mean(dim=1)
    across = (gray[:, :, 1:] - gray[:, :, :-1]).abs().mean(dim=(1, 2))
    down = (gray[:, 1:, :] - gray[:, :-1, :]).abs().mean(dim=(1, 2))
    return (across + down).numpy()


def map_figures(maps: ArtifactMap, prefix: str = "artifact") -> dict[str, np.ndarray]:
    """Area (share of pixels above .5) and score (mean) of each map."""
    flat = maps.flatten(1)
    return {
        f"{prefix}_area": (flat > 0.5).double().mean(dim=1).numpy(),
        f"{prefix}_score": flat.double().mean(dim=1).numpy(),
    }


def peak_flagged(maps: ArtifactMap, threshold: float = 0.5) -> np.ndarray:
    """An image counts when its largest pixel reaches the threshold (DIAMOND, arXiv 2602.00883)."""
    return (maps.flatten(1).amax(dim=1) >= threshold).numpy()


def change_outside(images: Images, base: Images, maps: ArtifactMap) -> Float[np.ndarray, " b"]:
    """Mean absolute change where the base's image was sound (its map at most .5)."""
    sound = (maps <= 0.5).float()
    change = ((images - base).abs().mean(dim=1, keepdim=True) * sound).flatten(1).sum(dim=1)
    return (change / sound.flatten(1).sum(dim=1).clamp(min=1)).numpy()


def as_csv(table: Mapping[str, Sequence[Any] | np.ndarray]) -> bytes:
    """One line an image, to sort by; the columns as they are named."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(table)
    lines.writerows(zip(*(plain(list(values)) for values in table.values()), strict=True))
    return text.getvalue().encode()


def numeric(table: Table) -> dict[str, Float[np.ndarray, " n"]]:
    """The figures of a table as float64: floats and booleans, neither factors nor groups."""
    return {k: np.asarray(v, float) for k, v in table.items() if np.asarray(v).dtype.kind in "fb"}


def factors(table: Table) -> dict[str, np.ndarray]:
    return {name: v for name, v in table.items() if np.asarray(v).dtype.kind in "iu"}


def groups(table: Table) -> dict[str, np.ndarray]:
    return {name: v for name, v in table.items() if np.asarray(v).dtype.kind in "UO"}


def marginal(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The share of each class among the images that the factor applies to."""
    counts = np.array([(values == one).sum() for one in classes], float)
    return counts / max(counts.sum(), 1.0)


def entropy(values: np.ndarray) -> float:
    """Shannon entropy in bits of one factor's marginal."""
    shares = marginal(values, np.unique(values[values >= 0]))
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum()) if len(shares) else 0.0


def mean_entropy(table: Table) -> float | None:
    """Mean entropy in bits over the unstated factors; none where no meter reads them."""
    free = [entropy(values) for name, values in factors(table).items() if name.startswith("free.")]
    return float(np.mean(free)) if free else None


def largest_shift(table: Table, base: Table) -> dict[str, Any] | None:
    """The class whose share moved most against the base, over all factors."""
    shifts = []
    for name, values in factors(table).items():
        classes = np.unique(np.concatenate([values, base[name]]))
        classes = classes[classes >= 0]
        moved = marginal(values, classes) - marginal(np.asarray(base[name]), classes)
        shifts += [(abs(d), name, int(c), d) for c, d in zip(classes, moved, strict=True)]
    if not shifts:
        return None
    _, name, kind, shift = max(shifts)
    return {"factor": name, "class": kind, "shift": float(shift)}


def resampled(values: Float[np.ndarray, "n f"], seed: int) -> Float[np.ndarray, "r f"]:
    """Means over bootstrap resamples of the rows; the rows stay whole, so pairs stay pairs.

    NaN (a figure that does not apply to an image) is left out of that figure's means.
    """
    n = len(values)
    there = ~np.isnan(values)
    filled = np.where(there, values, 0.0)
    draw = np.random.default_rng(mix(seed, RESAMPLES))
    means = []
    for _ in range(RESAMPLES // CHUNK):
        counts = draw.multinomial(n, np.full(n, 1 / n), size=CHUNK).astype(float)
        means.append((counts @ filled) / np.maximum(counts @ there, 1.0))
    return np.concatenate(means)


def summarise(table: Table, seed: int = 0) -> dict[str, Any]:
    """Every figure's mean with its interval, the entropy of the unstated factors, groups."""
    figures = numeric(table)
    names = sorted(figures)
    values = np.stack([figures[name] for name in names], axis=1)
    low, high = np.quantile(resampled(values, seed), [0.025, 0.975], axis=0)
    summary: dict[str, Any] = {name: float(np.nanmean(figures[name])) for name in names}
    summary["interval"] = {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}
    summary["entropy"] = mean_entropy(table)
    summary["n"] = len(values)
    for name, labels in groups(table).items():
        summary[f"by_{name}"] = by_group(labels, figures)
    return summary


def by_group(labels: np.ndarray, figures: Table) -> dict[str, dict[str, float]]:
    """Frequency and area within each group."""
    shown = [name for name in ("artifact_frequency", "artifact_area") if name in figures]
    return {
        str(label): {
            **{name: float(np.nanmean(figures[name][labels == label])) for name in shown},
            "n": int((labels == label).sum()),
        }
        for label in np.unique(labels)
    }


def compare(arm: Table, other: Table, seed: int = 0) -> dict[str, dict[str, Any]]:
    """arm - other for every figure both have, image by image, with its interval.

    `relative` is the change of the mean in units of the other's mean, resampled together with it.
    """
    mine, theirs = numeric(arm), numeric(other)
    names = sorted(set(mine) & set(theirs))
    a = np.stack([mine[name] for name in names], axis=1)
    b = np.stack([theirs[name] for name in names], axis=1)
    apart = np.isnan(a) | np.isnan(b)  # a pair counts only where both can be read
    both = np.concatenate([np.where(apart, np.nan, a), np.where(apart, np.nan, b)], axis=1)
    means = resampled(both, seed)
    centre = np.nanmean(both, axis=0)
    f = len(names)
    return {
        name: {
            **_interval("", centre[i] - centre[f + i], means[:, i] - means[:, f + i]),
            **_relative(centre[i], centre[f + i], means[:, i], means[:, f + i]),
        }
        for i, name in enumerate(names)
    }


def _interval(prefix: str, value: float, draws: np.ndarray) -> dict[str, Any]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        f"{prefix}difference": float(value),
        f"{prefix}interval": [float(low), float(high)],
    }


def _relative(a: float, b: float, draws_a: np.ndarray, draws_b: np.ndarray) -> dict[str, Any]:
    if b == 0 or (draws_b == 0).any():  # nothing to be relative to
        return {"relative_difference": None, "relative_interval": None}
    return _interval("relative_", a / b - 1, draws_a / draws_b - 1)


def joined(parts: list[Table]) -> dict[str, np.ndarray]:
    """Batches of one arm's table as one table."""
    return {name: np.concatenate([np.asarray(p[name]) for p in parts]) for name in parts[0]}


def as_arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Whatever a meter returns (arrays, tensors, lists) as numpy arrays."""
    return {
        name: v.numpy() if isinstance(v, torch.Tensor) else np.asarray(v)
        for name, v in values.items()
    }
