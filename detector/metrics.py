"""Artifact maps in, figures out: pure functions of (prediction, target), both in [0, 1].

Legend: b images, n pixels of all images; C the target, C^ the prediction.
The two KL halves are KL(FN) and KL(1-)(FP) of DiffDoctor (arXiv 2501.12382), read as the halves
of the per-pixel binary divergence; `saliency_kld` is the distribution divergence of the saliency
literature. All plain (not x100). A figure that the data does not define (no positive pixel, one
class only) is NaN.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from core.contracts import ArtifactMap

EPS = 1e-6
"""Published with the figures: both halves are clamped to [EPS, 1 - EPS]."""
BINARY = 0.5
"""Targets count as artifact from here."""
SORTED = 8_000_000
"""Up to so many scores a ranking figure is exact; beyond, scores are rounded to `LEVELS`."""
LEVELS = 65_536
Z95 = 1.959964
"""Deviations on each side of 95 % of a normal distribution."""


def mse(prediction: ArtifactMap, target: ArtifactMap) -> float:
    """Mean squared error over all pixels."""
    return (prediction - target).double().square().mean().item()


def kl_fn(prediction: ArtifactMap, target: ArtifactMap) -> float:
    """mean C log(C / C^): what missed artifacts cost."""
    return _half(prediction, target)


def kl_fp(prediction: ArtifactMap, target: ArtifactMap) -> float:
    """mean (1 - C) log((1 - C) / (1 - C^)): what false alarms cost."""
    return _half(1 - prediction, 1 - target)


def _half(prediction: Tensor, target: Tensor) -> float:
    c, c_hat = target.double().clamp(EPS, 1 - EPS), prediction.double().clamp(EPS, 1 - EPS)
    return (c * torch.log(c / c_hat)).mean().item()


def saliency_kld(prediction: ArtifactMap, target: ArtifactMap) -> float:
    """KL of each image's maps normalised to sum 1, averaged over images that have an artifact."""
    shown = target.flatten(1).amax(dim=1) > 0
    if not shown.any():
        return float("nan")
    p, q = (x[shown].flatten(1).double() for x in (target, prediction))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True).clamp_min(EPS)
    return (p * torch.log(p / (q + EPS) + EPS)).sum(1).mean().item()


def pixel_ap(prediction: ArtifactMap, target: ArtifactMap) -> float:
    """Average precision over all pixels (equal scores are one step), target cut at 0.5."""
    return average_precision(prediction.flatten(), target.flatten() >= BINARY)


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Sum over thresholds of (recall step) x precision; NaN without a positive."""
    hits, seen = _operating_points(scores, positive)
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    precision, recall = hits / seen, hits / hits[-1]
    steps = torch.diff(recall, prepend=recall.new_zeros(1))
    return (steps * precision).sum().item()


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores above a negative, ties half; NaN with one class only."""
    hits, seen = _operating_points(scores, positive)
    if not len(hits) or hits[-1] == 0 or hits[-1] == seen[-1]:
        return float("nan")
    true_rate, false_rate = hits / hits[-1], (seen - hits) / (seen[-1] - hits[-1])
    zero = hits.new_zeros(1)
    return torch.trapezoid(torch.cat([zero, true_rate]), torch.cat([zero, false_rate])).item()


def _operating_points(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """At each distinct score, descending: positives and all pixels at or above it (float64)."""
    if scores.numel() > SORTED:
        return _binned_points(scores, positive)
    order = torch.argsort(scores, descending=True, stable=True)
    scores, positive = scores[order], positive[order]
    last_of_ties = torch.ones_like(positive, dtype=torch.bool)
    last_of_ties[:-1] = scores[1:] != scores[:-1]
    hits = torch.cumsum(positive.double(), 0)[last_of_ties]
    seen = torch.nonzero(last_of_ties).flatten().double() + 1
    return hits, seen


def _binned_points(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """The same over scores in [0, 1] rounded to 65,536 levels: a count instead of a sort."""
    level = (scores * (LEVELS - 1)).round().long().clamp(0, LEVELS - 1)
    seen = torch.bincount(level, minlength=LEVELS).flip(0)
    hits = torch.bincount(level[positive], minlength=LEVELS).flip(0)
    used = seen > 0
    return hits.cumsum(0)[used].double(), seen.cumsum(0)[used].double()


def iou(
    prediction: ArtifactMap, target: ArtifactMap, threshold: float = 0.5, tolerance: int = 0
) -> float:
    """Intersection over union of all pixels at a threshold.

    With `tolerance` t, a predicted pixel within t pixels (chessboard distance) of the target
    counts as hit and a target pixel within t of the prediction as found; with m the mean of the two
    numbers, m / (m + false alarms + misses). t = 0 is plain IoU.
    """
    predicted, true = prediction >= threshold, target >= BINARY
    hits = (predicted & _grown(true, tolerance)).sum().double()
    found = (true & _grown(predicted, tolerance)).sum().double()
    false_alarms, misses = predicted.sum() - hits, true.sum() - found
    union = (hits + found) / 2 + false_alarms + misses
    return ((hits + found) / 2 / union).item() if union > 0 else float("nan")


def f1(prediction: ArtifactMap, target: ArtifactMap, threshold: float = 0.5) -> float:
    """Harmonic mean of pixel precision and recall at a threshold."""
    predicted, true = prediction >= threshold, target >= BINARY
    total = (predicted.sum() + true.sum()).item()
    return 2 * (predicted & true).sum().item() / total if total else float("nan")


def calibration_error(prediction: ArtifactMap, target: ArtifactMap, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins, against the soft target."""
    p, c = prediction.flatten().double(), target.flatten().double()
    place = (p * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=p.device).index_add_(0, place, p - c)
    return (gap.abs().sum() / p.numel()).item()


def reliability(
    prediction: ArtifactMap, target: ArtifactMap, bins: int = 15
) -> list[dict[str, float]]:
    """The bins of `calibration_error` that hold any pixel: what was predicted there on the mean,
    and what is labelled."""
    p, c = prediction.flatten().double(), target.flatten().double()
    place = (p * bins).long().clamp(0, bins - 1)
    pixels = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, values, minlength=bins) for values in (p, c)]
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "pixels": int(pixels[i]),
            "predicted": (sums[0][i] / pixels[i]).item(),
            "labelled": (sums[1][i] / pixels[i]).item(),
        }
        for i in range(bins)
        if pixels[i]
    ]


def image_auroc(prediction: ArtifactMap, target: ArtifactMap) -> float:
    """AUROC of the map's maximum against "the target reaches 0.5 somewhere"."""
    return auroc(image_scores(prediction), image_scores(target) >= BINARY)


def false_positive_images(
    prediction: ArtifactMap, target: ArtifactMap, threshold: float = 0.5
) -> float:
    """Share of the sound images (target below 0.5 everywhere) whose maximum reaches threshold."""
    sound = image_scores(target) < BINARY
    flagged = image_scores(prediction)[sound] >= threshold
    return flagged.double().mean().item() if len(flagged) else float("nan")


def artifact_frequency(prediction: ArtifactMap, threshold: float = 0.5) -> float:
    """Share of images whose maximum reaches the threshold (DIAMOND, arXiv 2602.00883)."""
    return (image_scores(prediction) >= threshold).double().mean().item()


def image_scores(maps: ArtifactMap) -> Tensor:
    """(b,) the maximum of each map."""
    return maps.flatten(1).amax(dim=1)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); of nothing it is all of 0 to 1."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def all_metrics(
    prediction: ArtifactMap, target: ArtifactMap, threshold: float = 0.5
) -> dict[str, float]:
    """Every figure of this file by name, plus `images`, their number."""
    return {
        "images": float(len(prediction)),
        "mse": mse(prediction, target),
        "kl_fn": kl_fn(prediction, target),
        "kl_fp": kl_fp(prediction, target),
        "saliency_kld": saliency_kld(prediction, target),
        "pixel_ap": pixel_ap(prediction, target),
        "iou": iou(prediction, target, threshold),
        "iou_1px": iou(prediction, target, threshold, tolerance=1),
        "f1": f1(prediction, target, threshold),
        "calibration_error": calibration_error(prediction, target),
        "image_auroc": image_auroc(prediction, target),
        "false_positive_images": false_positive_images(prediction, target, threshold),
        "artifact_frequency": artifact_frequency(prediction, threshold),
    }


def _grown(mask: Tensor, radius: int) -> Tensor:
    if radius == 0:
        return mask
    grown = F.max_pool2d(mask.float(), 2 * radius + 1, stride=1, padding=radius)
    return grown > 0
