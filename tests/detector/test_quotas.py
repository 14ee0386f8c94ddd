"""So much of each source in every batch; each sample once before any comes again."""

import json
from collections import Counter

import numpy as np
import pytest

from core.config import load_config
from core.errors import UserError
from core.samples import Record, Sample
from detector import train
from detector.augmentation import NO_AUGMENTATION
from detector.data import training_batch
from detector.quotas import PERIOD, check_named, make_quotas, slots, spread_evenly
from tests.detector.toy import toy_shards

BLANK = np.zeros((16, 16), np.uint8)
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
    assert found["pseudo"] == pytest.approx(PERIOD * 500 / 600, abs=2)


def test_slots_add_up_and_are_spread():
    counts = slots(np.array([1, 1, 1.0]), PERIOD)
    assert counts.sum() == PERIOD and counts.max() - counts.min() == 1
    pattern = spread_evenly(np.array([2, 6]))
    assert pattern.tolist().count(0) == 2 and 0 < abs(np.diff(np.flatnonzero(pattern == 0)))[0] <= 5


def test_no_cell_is_forgotten():
    """Few labels by people among many others."""
    records = [
        Record(key=f"{i}", source="human" if i < 8 else "pseudo", category=f"c{i % 4}")
        for i in range(20_000)
    ]
    quotas = make_quotas(records, {}, even=True)
    period = [quotas.at(place, 0) for place in range(len(quotas.pattern))]
    cells = {(records[i].source, records[i].category) for i in period}
    assert len(cells) == 8
    rare = make_quotas(records, {"human": 0.0001, "pseudo": 1.0}, even=False)
    assert any(records[rare.at(place, 0)].source == "human" for place in range(PERIOD))
    assert slots(np.array([1.0, 0.0]), PERIOD).tolist() == [PERIOD, 0]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"hard": 1.0}, "name 'hard', but the sources to learn from are human, pseudo, real: "),
        ({"humna": 1.0}, "name 'humna', but the sources to learn from are human, pseudo, real: "),
        ({"real": -1.0}, "negative"),
        ({"real": 0.0}, "all are 0"),
        ({"real": float("nan")}, "no number"),
    ],
    ids=str,
)
def test_shares_that_cannot_be(shares, said):
    with pytest.raises(UserError, match=said):
        make_quotas(RECORDS, shares, even=False)


def test_a_batch_takes_its_samples_by_the_quotas():
    def sample(record: Record) -> Sample:
        """White where a person labelled it."""
        level = 255 if record.source == "human" else 0
        return Sample(record.key, np.full((16, 16, 3), level, np.uint8), BLANK, record)

    samples = [sample(record) for record in RECORDS[:100]]
    quotas = make_quotas(RECORDS[:100], {"human": 0.75, "pseudo": 0.25}, even=False)
    images, _ = training_batch(samples, 8, NO_AUGMENTATION, seed=5, step=2, quotas=quotas)
    assert len(images) == 8 and images.mean() == 0.75
    plain, _ = training_batch(samples, 8, NO_AUGMENTATION, seed=5, step=2)
    assert plain.mean() < 0.75


def test_the_program_takes_them_from_the_command_line(tmp_path):
    words = ["--data", "d", "--out", "o", "--quotas", "human", "0.5", "real", "0.5"]
    config = load_config(train.Config, (), [*words, "--even-categories"])
    assert config.quotas == {"human": 0.5, "real": 0.5} and config.even_categories


def test_the_program_learns_by_them(tmp_path):
    data = toy_shards(tmp_path / "data", 24)
    given = {"data": (data,), "steps": 2, "batch": 4, "warmup": 1, "checkpoint_every": 1}
    runs = {"plain": {}, "even": {"even_categories": True}}
    for name, change in runs.items():
        assert train.main(train.Config(out=tmp_path / name, **given, **change)) is None
    card = json.loads((tmp_path / "even/detector/detector.json").read_text())["card"]
    assert card["even_categories"] is True


@pytest.mark.parametrize(
    ("quotas", "said"),
    [
        ({"real": 0.5, "hard": 0.5}, "'hard', but the sources to learn from are procedural, real:"),
        ({"real": -0.5, "procedural": 1.0}, "negative"),
    ],
    ids=str,
)
def test_quotas_are_refused_before_an_image_is_decoded(tmp_path, monkeypatch, quotas, said):
    data = toy_shards(tmp_path / "data", 24)
    monkeypatch.setattr(train, "hold", lambda *_: pytest.fail("images were decoded"))
    given = {"data": (data,), "out": tmp_path / "run", "quotas": quotas}
    with pytest.raises(UserError, match=said):
        train.main(train.Config(**given))
    assert not (tmp_path / "run").exists()


def test_no_record_is_read_after_the_last_source_was_seen():
    def endless():
        yield from RECORDS
        pytest.fail("read on")

    check_named({"human": 1.0, "real": 0.0}, endless())
    check_named({}, endless())
