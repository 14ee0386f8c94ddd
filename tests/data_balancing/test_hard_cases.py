"""What people label next: the hardest, evenly over the categories, and no two alike."""

import csv
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.contracts import Images
from core.errors import UserError
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from data_balancing import hard_cases
from data_balancing.choosing import Candidate, choose, fill, spread_out
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector


def candidate(i, hardness, category="", group=None):
    return Candidate(i, hardness, category, group or f"g{i}")


def test_the_budget_goes_where_labels_are_few():
    there = {"hand": 100, "face": 100, "sign": 3}
    shares = fill(there, {"hand": 50, "sign": 1}, 40)
    assert shares == {"hand": 0, "face": 37, "sign": 3}
    assert fill(there, {"hand": 50, "sign": 1}, 120) == {"hand": 33, "face": 84, "sign": 3}
    assert sum(fill(there, {}, 1000).values()) == 203


def test_of_one_group_the_second_comes_after_the_first_of_all():
    given_ = [candidate(0, 0.9, group="a"), candidate(1, 0.8, group="a"), candidate(2, 0.1)]
    assert [one.position for one in spread_out(given_)] == [0, 2, 1]
    assert choose(given_, 2, {}) == [0, 2]


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abc"), st.integers(0, 5))), st.data())
@settings(max_examples=60, deadline=None)
def test_chosen_ones_are_distinct_and_hardest_within_their_category(rows, data):
    candidates = [candidate(i, h, c, f"g{g}") for i, (h, c, g) in enumerate(rows)]
    n = data.draw(st.integers(0, 20))
    chosen = choose(candidates, n, {})
    assert len(set(chosen)) == len(chosen) == min(n, len(rows))
    for category in "abc":
        own = [one for one in candidates if one.category == category]
        taken = {i for i in chosen if rows[i][1] == category}
        for one in own:  # the hardest of a group is never left while another of it is taken
            group = [o for o in own if o.group == one.group]
            best = min(group, key=lambda o: (-o.hardness, o.position))
            if one.position in taken:
                assert best.position in taken


class Planted:
    """Says what stands in the red channel; the second of a pair says what stands in the green."""

    differentiable = False

    def __init__(self, channel: int):
        self.channel = channel

    def __call__(self, images: Images):
        return images[:, self.channel : self.channel + 1]


def test_where_two_detectors_disagree_is_hard():
    images = torch.full((3, 3, 16, 16), 0.5)
    images[1, 0, 4:8, 4:8] = 1.0  # a small disagreement
    images[2, :2, 4:8, 4:8] = 1.0  # both say so
    scores = hard_cases.scores_of(images, [Planted(0), Planted(1)])
    assert [round(s.disagreement, 6) for s in scores] == [0.0, 0.5, 0.0]
    alone = hard_cases.scores_of(images, [Planted(0)])
    assert [s.disagreement for s in alone] == [0.0, 0.0, 0.0]
    assert alone[1].wavering > alone[0].wavering > 0  # an edge is softened, a plane only darkened


def test_ranks_of_equal_values_are_equal():
    assert hard_cases.ranked([3.0, 1.0, 3.0, 2.0]).tolist() == [1.0, 0.0, 1.0, 0.5]
    assert hard_cases.ranked([2.0, 2.0]).tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for name, seed in (("first", 1), ("second", 2)):
        detector = SegformerDetector(SegformerConfig(variant="nano", prior=0.3), seed=seed)
        head = detector.network.decode_head.classifier.weight
        head.data = torch.randn(head.shape, generator=torch.Generator().manual_seed(seed))
        save_detector(detector, folder / name, {})
    with ShardWriter(folder / "store") as writer:
        for i in range(30):
            levels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
            category = ("hand", "hand", "face")[i % 3]
            source = "human" if i < 6 else "pseudo"
            mask = np.zeros((64, 64), np.uint8) if i < 6 else None
            record = Record(
                key=f"s{i:02d}", source=source, category=category, prompt=f"{category} {i // 6}"
            )
            writer.write(Sample(record.key, levels, mask, record))
    return folder


def config(world, out, **changes):
    given_ = {"store": world / "store", "detector": world / "first", "out": out, "n": 10}
    return hard_cases.Config(**{**given_, "second_detector": world / "second", **changes})


def test_the_program_writes_keys_scores_and_a_sheet(world, tmp_path):
    hard_cases.main(config(world, tmp_path / "a", labelled=(world / "store",)))
    keys = (tmp_path / "a/keys.txt").read_text().split()
    store = ShardStore(world / "store")
    places = [store.keys.index(key) for key in keys]
    assert len(set(keys)) == 10 and min(places) >= 6
    counts = Counter(store.record(i).category for i in places)
    assert counts == {"face": 6, "hand": 4}  # with 2 and 4 labelled: eight of each
    prompts = {store.record(i).prompt for i in places}
    assert len(prompts) == 8  # all four of either category
    rows = list(csv.DictReader((tmp_path / "a/scores.csv").open()))
    assert [row["key"] for row in rows] == keys and float(rows[0]["disagreement"]) > 0
    assert (tmp_path / "a/sheet.png").stat().st_size > 1000
    hard_cases.main(config(world, tmp_path / "b", labelled=(world / "store",), batch=5))
    assert (tmp_path / "b/keys.txt").read_text().split() == keys


def test_nothing_to_label_says_so(world, tmp_path):
    with ShardWriter(tmp_path / "real") as writer:
        image = np.zeros((64, 64, 3), np.uint8)
        writer.write(Sample("r", image, None, Record(key="r", source="real")))
    with pytest.raises(UserError, match="holds nothing"):
        hard_cases.main(config(world, tmp_path / "out", store=tmp_path / "real"))
