"""Pictures and checkpoints that a person asks for change nothing of what a run computes."""

import json
from pathlib import Path

import pytest

from core import checkpoint
from core.heatmap import read_map
from core.run import Run
from core.wishes import ask
from tests.treat.setting import build, config, digest, losses
from treat import train

STEPS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "run"
    assert train.main(config(world, out, steps=STEPS)) == 0
    return out


def asked_at(monkeypatch, wishes):
    """A person's wishes, by the step in which they come."""
    log = Run.log

    def logged(run, step, **figures):
        log(run, step, **figures)
        for wish in wishes.get(step, ()):
            for _ in range(3):
                ask(run.folder, wish)

    monkeypatch.setattr(Run, "log", logged)


def said(out):
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [line["message"] for line in lines if "as asked" in line["message"]]


def names(folder: Path):
    return sorted(path.name for path in folder.iterdir())


def test_the_same_bits_with_and_without_wishes(world, reference, tmp_path, monkeypatch):
    out = tmp_path / "run"
    asked_at(monkeypatch, {1: ("sample", "save"), 2: ("sample",)})
    assert train.main(config(world, out, steps=STEPS)) == 0
    assert (digest(out, STEPS), losses(out)) == (digest(reference, STEPS), losses(reference))
    assert (out / "summary.json").read_bytes() == (reference / "summary.json").read_bytes()
    for other in (out, reference):
        assert train.main(config(world, other, steps=STEPS + 1)) == 0  # and from there on
    assert digest(out, STEPS + 1) == digest(reference, STEPS + 1)


def test_one_set_of_pictures_a_wish_after_the_step_it_came_in(
    world, reference, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    asked_at(monkeypatch, {1: ("sample",), 2: ("sample",)})
    train.main(config(world, out, steps=STEPS))
    assert said(out) == ["drew after step 1, as asked", "drew after step 2, as asked"]
    looks = {*names(reference / "watched"), "step-00000001"}
    assert set(names(out / "watched")) == looks  # that of step 2 was due
    due, asked = (names(out / f"watched/step-0000000{n}") for n in (2, 1))
    assert due == asked and len(due) == 3  # two images and their maps
    for n in (1, 2):
        maps = sorted((out / f"watched/step-0000000{n}/maps").iterdir())
        assert len(maps) == 2 and read_map(maps[0]).max() > 0
    assert not (out / "sample.now").exists()


def test_a_run_that_draws_nothing_draws_its_sheet(world, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    ask(out, "sample")  # waits for the first step
    train.main(config(world, out, steps=2, watch_every=0))
    assert names(out / "pictures") == ["step-00000001.png"]
    assert not (out / "watched").exists()


def test_a_checkpoint_at_once(world, tmp_path, monkeypatch):
    out = tmp_path / "run"
    kept = []
    log = Run.log

    def logged(run, step, **figures):
        log(run, step, **figures)
        kept.append(checkpoint.steps(run.checkpoints))
        if step == 2:
            ask(run.folder, "save")

    monkeypatch.setattr(Run, "log", logged)
    settings = config(world, out, steps=STEPS, watch_every=0, guard="off")
    assert train.main(settings) == 0
    assert kept == [[], [], [2], [2]]
    assert said(out) == ["saved after step 2, as asked"]
    assert checkpoint.load(out / "checkpoints", 2).step == 2


def test_the_memory_in_use_is_among_the_figures(reference):
    lines = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert all(10e6 < line["host_memory"] < 1e12 for line in lines if line["step"])
    assert "device_memory" not in lines[-1]  # on a CPU
