"""Confidences by category in, shrunken figures and the categories that stand out out.

Legend: n images of a category, k of them broken; a b a beta prior; p a p-value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from core.errors import UserError

FEWEST = 5
"""Images that a category, and what is outside it, must have to be tested at all."""


class Beta(NamedTuple):
    """A prior of shares: mean a / (a + b), worth a + b images."""

    a: float
    b: float

    def shrunk(self, k: int, n: int) -> float:
        """The posterior's mean, (k + a) / (n + a + b): few images say little."""
        return (k + self.a) / (n + self.a + self.b)

    def interval(self, k: int, n: int, level: float = 0.95) -> tuple[float, float]:
        """The posterior's central interval."""
        beta, tail = _stats().beta, (1 - level) / 2
        low, high = beta.ppf([tail, 1 - tail], k + self.a, n - k + self.b)
        return float(low), float(high)


WEIGHTS = (1.0, 1000.0)
"""Least and most images a prior is worth; nor more than there are, for its mean comes from them."""


def beta_prior(broken: Sequence[int], images: Sequence[int]) -> Beta:
    """The beta-binomial prior of several categories by moments (Kleinman 1973, JASA 68:46-54).

    With pi the pooled share and S = sum n_i (p_i - pi)^2, the intraclass correlation is
    r = (S - (g-1) pi (1-pi)) / (pi (1-pi) (N - sum n_i^2 / N - (g-1))), and a + b = 1/r - 1.
    """
    k, n = np.asarray(broken, float), np.asarray(images, float)
    k, n = k[n > 0], n[n > 0]
    if not len(n):
        return Beta(0.5, 0.5)
    total, g = n.sum(), len(n)
    pi = (k.sum() + 0.5) / (total + 1)  # never 0 or 1
    spread = (n * (k / n - pi) ** 2).sum()
    chance = pi * (1 - pi)
    room = chance * (total - (n**2).sum() / total - (g - 1))
    r = (spread - (g - 1) * chance) / room if room > 0 else 0.0
    least, most = WEIGHTS
    if g == 1:  # one category says nothing of how categories differ
        return Beta(pi * least, (1 - pi) * least)
    weight = float(np.clip(1 / r - 1 if r > 0 else np.inf, least, max(least, min(most, total))))
    return Beta(pi * weight, (1 - pi) * weight)


class Normal(NamedTuple):
    """A prior of means, and the variance of one image about its category's mean."""

    mean: float
    between: float
    within: float

    def shrunk(self, mean: float, n: int) -> float:
        """B mu + (1 - B) mean, with B = within / (within + n between)."""
        if n == 0 or self.between == 0:
            return self.mean
        pull = self.within / (self.within + n * self.between)
        return pull * self.mean + (1 - pull) * mean


def normal_prior(groups: Sequence[Sequence[float]]) -> Normal:
    """The normal-normal prior of several categories (Efron and Morris 1975, JASA 70:311-319).

    Its variances by analysis of variance with unequal n (Searle, Casella, McCulloch 1992, 3.6):
    between = (MS_between - MS_within) / n0, n0 = (N - sum n_i^2 / N) / (g - 1).
    """
    arrays = [np.asarray(group, float) for group in groups if len(group)]
    if not arrays:
        return Normal(0.0, 0.0, 0.0)
    n, means = np.array([len(x) for x in arrays]), np.array([x.mean() for x in arrays])
    total, g = n.sum(), len(n)
    mean = float((n * means).sum() / total)
    inside = sum(((x - x.mean()) ** 2).sum() for x in arrays)
    within = float(inside / (total - g)) if total > g else 0.0
    if g < 2 or (n0 := (total - (n**2).sum() / total) / (g - 1)) <= 0:
        return Normal(mean, 0.0, within)
    between = float((n * (means - mean) ** 2).sum() / (g - 1))
    return Normal(mean, max((between - within) / float(n0), 0.0), within)


class Difference(NamedTuple):
    """A category against all other images."""

    p: float | None
    """Two-sided; None where either side has under `FEWEST` images."""
    above: float | None
    """Share of pairs (one inside, one outside) in which the inner one is higher; 0.5 is even."""


def against_the_rest(inside: Sequence[float], outside: Sequence[float]) -> Difference:
    """The rank test of Mann and Whitney (1947), ties corrected, exact where few and without ties.

    Ranks, because confidences crowd near 0 and 1; it takes images as independent, so give each
    prompt one image where many share it.
    """
    if min(len(inside), len(outside)) < FEWEST:
        return Difference(None, None)
    if len({*inside, *outside}) == 1:
        return Difference(1.0, 0.5)
    found = _stats().mannwhitneyu(inside, outside, alternative="two-sided")
    return Difference(float(found.pvalue), float(found.statistic / (len(inside) * len(outside))))


def adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """Benjamini and Hochberg's (1995) adjusted p-values; what was not tested stays None.

    Those at most q make a list of which at most a share q is false on average. It holds for
    categories that overlap as well, where they do so positively (Benjamini and Yekutieli 2001).
    """
    tested = [i for i, p in enumerate(p_values) if p is not None]
    order = sorted(tested, key=lambda i: (p_values[i], i))
    found: list[float | None] = [None] * len(p_values)
    least = 1.0
    for rank in range(len(order), 0, -1):
        i = order[rank - 1]
        least = min(least, (p_values[i] or 0.0) * len(order) / rank)
        found[i] = least
    return found


def _stats() -> Any:
    try:
        import scipy.stats
    except ImportError as error:
        raise UserError("the balance needs scipy: install it (pip install scipy).") from error
    return scipy.stats
