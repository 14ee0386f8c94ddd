"""The shipped detectors' training: what it draws, what it learns from, what its card says."""

import pytest
import torch

from benchmarks import starters
from core.errors import UserError
from core.shards import ShardStore
from detector.storage import load_detector, read_description
from tests.detector.toy import toy_shards


def config(out, **changes):
    few = {"labelled": 5, "older": 1, "more": 4, "faults": 5, "renders": 5, "steps": 1}
    return starters.Config.model_validate({"out": out, "which": ("second",)} | few | changes)


def test_what_was_drawn_and_what_was_given_teach_together(tmp_path, monkeypatch):
    monkeypatch.setattr(starters, "DETECTORS", tmp_path / "shipped")
    earlier = toy_shards(tmp_path / "earlier", 3, size=64)
    assert not starters.main(config(tmp_path / "out", also=(earlier,)))
    records = ShardStore(tmp_path / "out/data/second").records()
    drawn = [r.category for r in records if r.source == "human" and r.generator == "newest"]
    assert len(records) == 5 + 2 + 4 + 5 + 5
    assert drawn.count("bicycle") == 1 and len(drawn) == 5 + 4  # one of the first five
    card = read_description(tmp_path / "shipped/second").card
    assert card["settings"]["also"] == 3 and card["settings"]["more"] == 4


def test_the_first_is_hardened_part_of_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(starters, "DETECTORS", tmp_path / "shipped")
    changes = {"which": ("first",), "hardened_steps": 1, "hardened_share": 0.25}
    assert not starters.main(config(tmp_path / "out", **changes))
    before, after, between = (
        load_detector(tmp_path / "out" / name).state_dict()
        for name in ("first", "hardened", "between")
    )
    weights = [name for name in before if not torch.equal(before[name], after[name])]
    assert weights
    for name in weights:
        if before[name].is_floating_point():
            expected = 0.75 * before[name] + 0.25 * after[name]
            torch.testing.assert_close(between[name], expected, rtol=1e-4, atol=1e-6)
    shipped = load_detector(tmp_path / "shipped/first").state_dict()
    assert all(torch.equal(shipped[name], between[name].half()) for name in weights)
    assert read_description(tmp_path / "shipped/first").card["settings"]["hardened_share"] == 0.25


def test_what_is_given_must_be_there(tmp_path):
    for changes in ({"also": (tmp_path / "nowhere",)}, {"start": tmp_path / "nowhere"}):
        with pytest.raises(UserError, match="nowhere"):
            starters.main(config(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
