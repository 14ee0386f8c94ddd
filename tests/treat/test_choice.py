"""Which steps learn: the rules give K steps of T, the random ones differ and repeat."""

from collections import Counter

import pytest

from treat.choice import RULES, choose, drawn_among
from treat.settings import number_of


def test_a_share_is_rounded_up_and_a_number_stays():
    assert [number_of(0.25, total) for total in (1, 4, 5, 8, 50)] == [1, 1, 2, 2, 13]
    assert number_of(None, 30) == number_of(0.25, 30) == 8
    assert number_of(3, 4) == 3 and number_of(0.3, 10) == 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k, total", [(1, 1), (1, 6), (3, 6), (6, 6), (8, 30)])
def test_ascending_steps_of_the_chain(rule, k, total):
    for seed in range(20):
        chosen = choose(rule, k, total, seed)
        assert chosen == sorted(set(chosen)) and 0 <= chosen[0] <= chosen[-1] < total
        assert 1 <= len(chosen) <= k if rule == "tail" else len(chosen) == k
        assert chosen == choose(rule, k, total, seed)


def test_what_each_rule_means():
    assert choose("last", 3, 6, 0) == [3, 4, 5]
    assert choose("uniform", 3, 6, 0) == [1, 3, 5]
    assert choose("uniform", 4, 30, 0) == [7, 14, 22, 29]
    assert choose((4, 0), 9, 6, 0) == [0, 4]
    tails = Counter(len(choose("tail", 3, 6, seed)) for seed in range(600))
    assert set(tails) == {1, 2, 3} and min(tails.values()) > 150
    assert all(choose("tail", 3, 6, seed)[-1] == 5 for seed in range(20))
    met = Counter(i for seed in range(600) for i in choose("random", 3, 6, seed))
    assert set(met) == set(range(6)) and min(met.values()) > 240


def test_redraws_fall_on_all_of_the_steps():
    met = Counter(i for seed in range(300) for i in drawn_among([2, 3, 5], 2, seed))
    assert set(met) == {2, 3, 5} and min(met.values()) > 150
    assert drawn_among([2, 3, 5], 2, 7) == drawn_among([2, 3, 5], 2, 7)
