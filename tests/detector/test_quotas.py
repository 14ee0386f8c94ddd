"""So much of each source in every batch; each sample once before any comes again."""

from collections import Counter

import numpy as np
import pytest

from core.errors import UserError
from core.samples import Record
from detector.quotas import PERIOD, make_quotas, slots, spread_evenly

RECORDS = [
    Record(key=f"{i}", source=source, category=category)
    for i, (source, category) in enumerate(
        [("human", "hand")] * 10
        + [("human", "face")] * 30
        + [("pseudo", "hand")] * 500
        + [("real", "")] * 60
    )
]


def sources(places):
    return Counter(RECORDS[i].source for i in places)


def test_every_batch_has_its_shares():
    quotas = make_quotas(RECORDS, {"human": 0.25, "pseudo": 0.5, "real": 0.25}, even=False)
    for k in range(200):
        found = sources(quotas.batch(16, seed=1, k=k))
        assert abs(found["human"] - 4) <= 1 and abs(found["pseudo"] - 8) <= 1, k
    many = sources(i for k in range(250) for i in quotas.batch(16, seed=1, k=k))
    assert many == {"human": 1000, "pseudo": 2000, "real": 1000}


def test_categories_share_alike_where_asked():
    quotas = make_quotas(RECORDS, {"human": 1.0}, even=True)
    found = Counter(RECORDS[i].category for k in range(100) for i in quotas.batch(10, 0, k))
    assert found == {"hand": 500, "face": 500}


def test_each_sample_once_before_any_comes_again():
    quotas = make_quotas(RECORDS, {"human": 0.2, "pseudo": 0.8}, even=False)
    order = [i for k in range(100) for i in quotas.batch(10, 7, k) if RECORDS[i].source == "human"]
    for start in range(0, 200, 40):
        assert sorted(order[start : start + 40]) == list(range(40))
    assert order[:40] != order[40:80]


def test_a_pure_function_of_the_position():
    quotas = make_quotas(RECORDS, {}, even=True)
    whole = [i for k in range(30) for i in quotas.batch(12, 3, k)]
    parts = [i for k in range(90) for i in quotas.batch(4, 3, k)]
    assert whole == parts
    assert whole != [i for k in range(30) for i in quotas.batch(12, 4, k)]


def test_without_shares_each_source_has_what_its_number_gives_it():
    quotas = make_quotas(RECORDS, {}, even=False)
    found = sources(quotas.at(p, 0) for p in range(PERIOD))
    assert found["pseudo"] == pytest.approx(PERIOD * 500 / 600, abs=1)


def test_slots_add_up_and_are_spread():
    counts = slots(np.array([1, 1, 1.0]), PERIOD)
    assert counts.sum() == PERIOD and counts.max() - counts.min() == 1
    pattern = spread_evenly(np.array([2, 6]))
    assert pattern.tolist().count(0) == 2 and 0 < abs(np.diff(np.flatnonzero(pattern == 0)))[0] <= 5


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"hard": 1.0}, "unknown name 'hard'"),
        ({"real": -1.0}, "negative"),
        ({"real": 0.0}, "all are 0"),
    ],
    ids=str,
)
def test_shares_that_cannot_be(shares, said):
    with pytest.raises(UserError, match=said):
        make_quotas(RECORDS, shares, even=False)
