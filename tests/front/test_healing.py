"""The healing benchmark's bookkeeping: which arms, whose ceiling, what share of the way."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks import healing
from benchmarks.healing import Config, own, planned
from benchmarks.healing_figures import ARMS, drifted, evaluated, row, shift, verdicts
from core.errors import UserError
from diffdoctor.demo import Demo
from diffdoctor.demo_settings import FULL, OF_BASE, QUICK
from miniature.bases import base_folder
from treat.settings import number_of


def test_one_ceiling_serves_all_seeds():
    names = planned(Config(seeds=(3, 13), arms=("control", "adapter", "ceiling", "limit")))
    assert names == [
        "control-3", "control-13", "adapter-3", "adapter-13", "ceiling-3", "limit-3"
    ]  # fmt: skip
    arms = {name: Path(name) for name in names}
    assert list(own(arms, 3)) == ["control-3", "adapter-3", "ceiling-3", "limit-3"]
    assert list(own(arms, 13)) == ["control-13", "adapter-13"]


@pytest.mark.parametrize("wrong", [{"seeds": ()}, {"seeds": (-1,)}, {"arms": ()}])
def test_plans_without_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        Config(**wrong)


def summary(**frequencies: float) -> dict:
    arms = {
        name: {"artifact_frequency": value, "artifact_area": value / 10}
        for name, value in frequencies.items()
    }
    changes = {"adapter-1 - control-1": {}, "control-1 - base": {}}
    return {"arms": arms, "differences": changes}


def test_the_share_is_counted_from_control_to_ceiling():
    first = summary(
        **{"base": 0.6, "control-0": 0.6, "adapter-0": 0.5, "ceiling-0": 0.2, "limit-0": 0.1}
    )
    second = summary(**{"base": 0.6, "control-1": 0.6, "adapter-1": 0.3})
    found = row({0: first, 1: second}, 1)
    assert found["share_of_ceiling"]["artifact_frequency"] == pytest.approx(0.75)
    assert found["share_of_limit"]["artifact_area"] == pytest.approx(0.6)
    assert found["ceiling"] == first["arms"]["ceiling-0"]
    assert list(found["differences"]) == ["adapter-1 - control-1"]
    alone = row({1: second}, 1)
    assert "share_of_ceiling" not in alone and "ceiling" not in alone


def test_verdicts_are_in_points_and_shifts_name_their_value():
    figures = ("artifact_frequency", "artifact_area", "attribute_match")
    change = {name: {"difference": -0.08, "interval": [-0.1, -0.06]} for name in figures}
    one = {
        "differences": {"adapter-0 - control-0": change, "adapter-0 - base": change},
        "share_of_ceiling": {"artifact_frequency": 0.0, "artifact_area": None},
        "share_of_limit": {"artifact_frequency": 0.5, "artifact_area": 0.25},
    }
    lines = verdicts([one])
    assert len(lines) == 3
    assert lines[0].endswith(
        "-8.00 points, 95 % -10.00 to -6.00; 0% of the ceiling's; 50% of the limit's"
    )
    assert "ceiling" not in lines[1] + lines[2] and lines[1].endswith("; 25% of the limit's")
    assert shift(None) == ""
    found = shift({"factor": "stated.hand.side", "class": 0, "shift": 0.051})
    assert found.startswith("stated.hand.side ") and found.endswith(" +5.1")


@pytest.mark.parametrize("arm", ARMS)
def test_each_arm_learns_from_what_its_name_says(arm: str, tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        healing.treat.train, "main", lambda s, reward_for: asked.append((s, reward_for))
    )
    healing.train(Config(steps=7), Demo(tmp_path, FULL), f"{arm}-3", tmp_path / f"{arm}-3")
    (found, reward), *further = asked
    assert (found.seed, found.steps) == (3, 300 if arm == "limit" else 7)
    assert (reward is not None) is (arm in ("ceiling", "limit"))
    assert len(further) == (arm == "limit")
    held = {"control": 0, "paper": 0, "limit": 0}.get(arm, FULL.treat["lock_weight"])
    assert found.lock_weight == held
    assert found.pixel_weight == {"control": 0, "paper": 1, "adapter": 2}.get(arm, 20)
    for settings, reward in further:  # it goes on from where it stood, with other images
        assert reward is not None and settings.start == found.out and settings.seed == 4
        assert (settings.steps, settings.batch, settings.out) == (120, 64, tmp_path / "limit-3")
        assert settings.lock_weight == 0 and settings.pixel_weight == 20
    assert (found.detector is not None) is (arm in ("paper", "adapter"))
    assert (found.second_detector is not None) is (found.refresh_every > 0) is (arm == "adapter")
    if arm == "paper":
        defaults = type(found).model_fields
        for name in ("threshold", "selection", "pixel_penalty", "lock_weight", "offline_weight"):
            assert getattr(found, name) == defaults[name].default


@pytest.mark.parametrize("arm", ARMS)
def test_a_rate_that_is_given_is_that_of_adapters_and_controls(arm, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(
        healing.treat.train, "main", lambda s, reward_for: rates.append(s.learning_rate)
    )
    for rate in (None, 2e-4):
        healing.train(Config(learning_rate=rate), Demo(tmp_path, FULL), f"{arm}-3", tmp_path / arm)
    own, given = rates[: len(rates) // 2], rates[len(rates) // 2 :]
    assert given == ([2e-4] if arm in ("control", "adapter") else own)
    assert 2e-4 not in own


@pytest.mark.parametrize("arm", ARMS)
def test_as_many_images_as_are_given_for_all_arms_but_the_limit(arm, tmp_path, monkeypatch):
    batches = []
    monkeypatch.setattr(healing.treat.train, "main", lambda s, reward_for: batches.append(s.batch))
    for batch in (None, 3):
        healing.train(Config(batch=batch), Demo(tmp_path, FULL), f"{arm}-3", tmp_path / arm)
    usual, given = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    assert usual == ([32, 64] if arm == "limit" else [FULL.treat["batch"]])
    assert given == (usual if arm == "limit" else [3])


def test_drift_is_read_from_the_tables_that_the_evaluation_keeps(tmp_path: Path):
    folder = tmp_path / "evaluation-0-adapter"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"arms": {"base": {}, "adapter-0": {}}}))
    for name, left, flawed in (("base", 4, {1, 2}), ("adapter-0", 1, {9})):
        lines = ["prompt,artifact_frequency,stated.hand.side,free.face.sky", "a face,False,-1,2"]
        lines += [f"a hand,{i in flawed},{int(i >= left)},-1" for i in range(10)]
        (folder / f"{name}.csv").write_text("\n".join(lines))
    found = evaluated(folder)["arms"]
    assert found["base"]["drift"]["shift"] == 0
    assert drifted(found["base"]["drift"]) == drifted(None) == ""
    assert drifted(found["adapter-0"]["drift"]) == "stated.hand.side left -30.0"
    of_sound = found["adapter-0"]["drift_sound"]  # of seven, two were left and one is
    assert drifted(of_sound) == "stated.hand.side left -14.3"


@pytest.mark.parametrize("quick", [False, True])
def test_a_demo_of_the_other_kind_is_refused(tmp_path: Path, quick: bool):
    kind = FULL if quick else QUICK
    (tmp_path / "demo.json").write_text(json.dumps({"base": "newest", "labelled": kind.labelled}))
    (tmp_path / "summary.json").write_text("{}")
    cure = "drop --quick" if quick else "add --quick"
    with pytest.raises(UserError, match=cure):
        healing.main(Config(demo=tmp_path, out=tmp_path / "out", quick=quick))


@pytest.mark.parametrize("note", [{"labelled": FULL.labelled}, {"base": "sd9"}])
def test_a_demo_of_an_earlier_version_is_refused(tmp_path: Path, note: dict):
    (tmp_path / "demo.json").write_text(json.dumps(note))
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="run the demo anew"):
        healing.main(Config(demo=tmp_path, out=tmp_path / "out"))


@pytest.mark.parametrize("name", OF_BASE)
def test_the_limit_learns_from_every_step_of_any_base(tmp_path: Path, monkeypatch, name: str):
    asked = []
    monkeypatch.setattr(healing.treat.train, "main", lambda s, reward_for: asked.append(s))
    healing.train(Config(), Demo(tmp_path, OF_BASE[name]), "limit-0", tmp_path / "limit-0")
    found = [(number_of(s.last, s.sampling_steps), s.base) for s in asked]
    assert found == 2 * [(OF_BASE[name].sampling_steps, str(base_folder(name)))]
