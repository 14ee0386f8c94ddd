"""Shrinkage by hand, the false-discovery rate by simulation."""

import numpy as np
import pytest

from data_balancing.anomalies import (
    FEWEST,
    Beta,
    Normal,
    adjusted,
    against_the_rest,
    beta_prior,
    normal_prior,
)


def test_a_small_category_is_shrunk_exactly():
    prior = Beta(1, 3)
    assert prior.shrunk(2, 2) == 3 / 6 and prior.shrunk(200, 200) == 201 / 204
    assert prior.shrunk(0, 0) == 1 / 4
    low, high = prior.interval(2, 2)
    assert 0 < low < 0.5 < high < 1


def test_the_prior_by_hand():
    """n 10 and 10, k 2 and 8: pi 10.5/21 = 0.5, S 1.8, r = (1.8 - 0.25) / (0.25 * 9) = 0.6889."""
    a, b = beta_prior([2, 8], [10, 10])
    weight = 0.25 * 9 / (1.8 - 0.25) - 1
    assert a + b == pytest.approx(max(weight, 1.0)) and a == pytest.approx(b)
    alike = beta_prior([50, 50, 50], [100, 100, 100])
    assert alike.a + alike.b == pytest.approx(300)
    assert sum(beta_prior([5000] * 3, [10000] * 3)) == pytest.approx(1000)
    assert beta_prior([], []) == Beta(0.5, 0.5) and sum(beta_prior([3], [3])) == pytest.approx(1)


def test_the_prior_is_recovered():
    draw = np.random.default_rng(0)
    n = draw.integers(20, 200, 400)
    k = draw.binomial(n, draw.beta(2, 6, 400))
    a, b = beta_prior(k.tolist(), n.tolist())
    assert a == pytest.approx(2, rel=0.2) and b == pytest.approx(6, rel=0.2)


def test_means_are_shrunk_exactly():
    prior = Normal(mean=0.2, between=0.1, within=0.3)
    assert prior.shrunk(0.8, 3) == pytest.approx(0.5 * 0.2 + 0.5 * 0.8)
    assert prior.shrunk(0.8, 0) == 0.2
    assert Normal(0.2, 0.0, 0.3).shrunk(0.8, 3) == 0.2


def test_variances_by_hand():
    """Two groups of two: within 2 / 2, MS_between 2 * 2 * 4 = 16, n0 = 2."""
    assert normal_prior([[0.0, 2.0**0.5], [4.0, 4 + 2.0**0.5]]) == pytest.approx(
        Normal(2 + 2**0.5 / 2, (16 - 1) / 2, 1.0)
    )
    assert normal_prior([[1.0, 3.0]]).between == 0 and normal_prior([]) == Normal(0, 0, 0)


def test_adjusted_by_hand():
    assert adjusted([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.04, 0.04])
    assert adjusted([]) == [] and adjusted([None]) == [None]


def test_both_sides_are_seen():
    low, high = [0.1 + i / 100 for i in range(10)], [0.6 + i / 100 for i in range(10)]
    up, down = against_the_rest(high, low), against_the_rest(low, high)
    assert up.above == 1 and down.above == 0 and up.p == down.p and (up.p or 1) < 1e-3
    assert against_the_rest([1.0] * (FEWEST - 1), low).p is None
    assert against_the_rest([1.0] * 9, [1.0] * 9) == (1.0, 0.5)


def found(draw: np.random.Generator, planted: float, categories: int = 12, n: int = 240) -> list:
    """Adjusted p-values of overlapping categories; the first one is `planted` higher."""
    member = draw.random((categories, n)) < draw.uniform(0.05, 0.4, (categories, 1))
    value = draw.beta(0.3, 0.6, n) + planted * member[0]
    tests = [against_the_rest(value[m].tolist(), value[~m].tolist()) for m in member]
    return [1.0 if p is None else p for p in adjusted([test.p for test in tests])]


def test_under_the_null_few_runs_find_anything():
    """q 0.1: all discoveries are false, so the share of runs with any is the rate itself.

    Over 300 runs its deviation is 0.017; three of them are the slack.
    """
    runs = [min(found(np.random.default_rng([7, i]), 0.0)) <= 0.1 for i in range(300)]
    assert np.mean(runs) <= 0.1 + 0.052


def test_the_control_finds_what_is_planted():
    runs = [found(np.random.default_rng([8, i]), 1.0)[0] <= 0.1 for i in range(20)]
    assert np.mean(runs) >= 0.95
