"""Features of two sets of images in; how far the sets lie apart, as figures with intervals, out.

FID (Heusel et al. 2017, arXiv 1706.08500) and KID (Binkowski et al. 2018, arXiv 1801.01401) are
torchmetrics'; precision and recall are the improved ones (Kynkaanniemi et al. 2019, arXiv
1904.06991), coverage is Naeem et al.'s (2020, arXiv 2002.09797). What they say is the feature
network's word: `detector.features` names it.

Legend: n real, m generated images, d features, r resamples.
"""

import warnings
from collections.abc import Iterator, Sequence, Sized
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.errors import UserError
from core.seeds import generator, mix

NEIGHBOURS = 3
"""k of precision and recall; the paper's."""
SURROUNDING = 5
"""k of coverage; its paper's, at which a set like the real one covers .97."""
SUBSETS, SUBSET = 100, 1000
"""Of KID: how many, and the most images of each (torchmetrics' defaults)."""
RESAMPLED, CHOSEN = 131, 132
"""What a draw is for; see `core.seeds`."""
BLOCK = 1024
"""Rows whose distances to all others are held at once."""
EXACT = "donot_use_mm_for_euclid_dist"
"""By differences: a product would round the distance of near points."""


@final
class _Given(nn.Module):
    """Features that were computed before, where torchmetrics asks for a network."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


@final
class Fid:
    """FID against one set of real images, whose statistics are taken once."""

    def __init__(self, real: Float[Tensor, "n d"]):
        from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds

        check_enough(real)
        self._metric: Any = FrechetInceptionDistance(_Given(real.shape[1]), False)
        self._metric.update(real.double(), real=True)

    def __call__(self, generated: Float[Tensor, "m d"]) -> float:
        check_enough(generated)
        self._metric.reset()
        self._metric.update(generated.double(), real=False)
        return float(self._metric.compute())


def kid(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m d"],
    seed: int = 0,
    subsets: int = SUBSETS,
    subset: int = SUBSET,
) -> tuple[float, float]:
    """Mean over the subsets, and their deviation. The kernel is (x y / d + 1)^3.

    A subset holds at most `subset` images, and at most half of the smaller set, or all subsets
    would be the same one.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    for features in (real, generated):
        check_enough(features)
    size = max(2, min(subset, len(real) // 2, len(generated) // 2)) if subsets > 1 else subset
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric .* will save all extracted features")  # as we do
        metric: Any = KernelInceptionDistance(_Given(real.shape[1]), subsets, size)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, CHOSEN))
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def inside(
    points: Float[Tensor, "m d"], manifold: Float[Tensor, "n d"], k: int = NEIGHBOURS
) -> Bool[np.ndarray, " m"]:
    """Whether each point lies within reach of the manifold's: nearer to one of its points than that
    one's k-th nearest neighbour is (equation 1).

    Precision is the share of generated images inside the real ones, recall that of real images
    inside the generated ones.
    """
    check_neighbours(manifold, k)
    manifold, points = manifold.double(), points.double()
    reaches = torch.cat([_reach(block, manifold, k) for block in manifold.split(BLOCK)])
    hits = [
        (torch.cdist(block, manifold, compute_mode=EXACT) <= reaches).any(dim=1)
        for block in points.split(BLOCK)
    ]
    return torch.cat(hits).numpy()


def covered(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], k: int = SURROUNDING
) -> Bool[np.ndarray, " n"]:
    """Whether each real image has a generated one within its reach: nearer to it than its k-th
    nearest real neighbour is (equation 10 of arXiv 2002.09797).

    Coverage is the share that has. Unlike recall it takes only the real images' reaches: a stray
    generated image, whose reach is long, counts as recall of everything around it, and to mend it
    looks like a loss.
    """
    check_neighbours(real, k)
    real, generated = real.double(), generated.double()
    hits = [
        (torch.cdist(block, generated, compute_mode=EXACT) <= _reach(block, real, k)[:, None]).any(
            dim=1
        )
        for block in real.split(BLOCK)
    ]
    return torch.cat(hits).numpy()


def _reach(
    block: Float[Tensor, "b d"], manifold: Float[Tensor, "n d"], k: int
) -> Float[Tensor, " b"]:
    """To the k-th nearest neighbour; the nearest of all is the point itself."""
    distances = torch.cdist(block, manifold, compute_mode=EXACT)
    return distances.kthvalue(k + 1, dim=1).values


def resamples(count: int, number: int, seed: int) -> Iterator[Tensor]:
    """Rows drawn anew with repetition, the same for every set of `count` images."""
    for r in range(number):
        yield torch.randint(count, (count,), generator=generator(seed, RESAMPLED, r))


def interval(value: float, draws: Sequence[float]) -> list[float] | None:
    """95 % about a figure that resampling biases: 1.96 deviations of the draws; None without any.

    Percentiles would be wrong for FID: images that occur twice make a set look narrower, and every
    draw lies further off than the set itself.
    """
    if len(draws) < 2:
        return None
    half = 1.96 * float(np.std(draws, ddof=1))
    return [value - half, value + half]


def check_neighbours(features: Sized, k: int) -> None:
    if len(features) <= k:
        raise UserError(
            f"{len(features)} images have no {k} neighbours each: give at least {k + 1} in a set."
        )


def check_enough(features: Tensor) -> None:
    if len(features) < 2:
        raise UserError("a set of one image has no spread: give at least two, better thousands.")
