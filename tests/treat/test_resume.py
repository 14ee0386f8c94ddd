"""Stopped anywhere and run again, a treatment ends in the same bits."""

import os
import random
import shutil
import subprocess
import sys

import pytest
import torch

from core import checkpoint
from core.config import to_yaml
from core.run import PAUSED, Run
from tests.treat.setting import build, config, digest, losses
from treat import train

STEPS = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory):
    """The run that nobody disturbed."""
    out = tmp_path_factory.mktemp("reference") / "run"
    assert train.main(config(world, out, steps=STEPS)) == 0
    return digest(out, STEPS), losses(out)


def stop_at(monkeypatch, step):
    """As if SIGTERM came while `step` was computed."""
    asked = []

    def interrupted(_run):
        asked.append(1)
        return len(asked) >= step

    monkeypatch.setattr(Run, "interrupted", property(interrupted))


@pytest.fixture(scope="module")
def half(world, tmp_path_factory):
    """A run that was stopped after its third step."""
    out = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3)
        assert train.main(config(world, out, steps=STEPS)) == PAUSED
    return out


def test_stopped_and_resumed_at_random_steps(world, reference, tmp_path, monkeypatch):
    seed = random.randrange(2**31)
    print("seed", seed)
    stops = random.Random(seed).sample(range(1, STEPS), 2)
    for stop in sorted(stops):
        out = tmp_path / f"stop-{stop}"
        settings = config(world, out, steps=STEPS)
        with monkeypatch.context() as patch:
            stop_at(patch, stop)
            assert train.main(settings) == PAUSED
        assert checkpoint.steps(out / "checkpoints")[-1] == stop
        assert train.main(settings) == 0
        assert (digest(out, STEPS), losses(out)) == reference


def test_control_a_resume_without_the_optimizer_differs(
    world, reference, half, tmp_path, monkeypatch
):
    out = shutil.copytree(half, tmp_path / "run")
    monkeypatch.setattr(train.Update, "restore", lambda *_: None)
    train.main(config(world, out, steps=STEPS))
    assert digest(out, STEPS) != reference[0]


def test_damaged_rows_of_the_cache_are_computed_anew(world, reference, half, tmp_path):
    out = shutil.copytree(half, tmp_path / "run")
    flipped, cut = sorted(out.glob("cache/*/rows-*.safetensors"))
    content = bytearray(flipped.read_bytes())
    content[-2] ^= 0x40
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-100])
    assert train.main(config(world, out, steps=STEPS)) == 0
    assert (digest(out, STEPS), losses(out)) == reference


OTHERWISE = ("checkpoint_blocks", "checkpoint_decoder", "two_pass_decode", "recompute")


@pytest.mark.parametrize("name", OTHERWISE)
def test_it_may_go_on_with_another_use_of_memory(world, reference, half, tmp_path, name):
    out = shutil.copytree(half, tmp_path / "run")
    assert train.main(config(world, out, steps=STEPS, **{name: name != "recompute"})) == 0
    assert (digest(out, STEPS), losses(out)) == reference


def test_a_damaged_checkpoint_is_noted_in_the_run(world, tmp_path):
    out = tmp_path / "run"
    assert train.main(config(world, out, steps=2, checkpoint_every=1)) == 0
    newest = out / "checkpoints/step-00000002/adapter.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert train.main(config(world, out, steps=2, checkpoint_every=1)) == 0
    events = (out / "events.jsonl").read_text()
    assert "damaged checkpoint step-00000002 set aside" in events
    assert "resumed after step 1" in events


def run_program(settings, folder):
    """The real command in a fresh process, with as many threads as here."""
    file = folder / "treat.yaml"
    file.write_text(to_yaml(settings))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = [sys.executable, "-m", "treat.train", "--config", str(file)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def test_in_a_fresh_process(world, reference, half, tmp_path):
    out = shutil.copytree(half, tmp_path / "run")
    child = run_program(config(world, out, steps=STEPS), tmp_path)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said
    assert (digest(out, STEPS), losses(out)) == reference


@pytest.mark.trial
def test_stopped_at_twenty_random_steps(world, tmp_path, monkeypatch):
    """Each resumed in a fresh process."""
    steps = 24
    assert train.main(config(world, tmp_path / "whole", steps=steps)) == 0
    ended = digest(tmp_path / "whole", steps), losses(tmp_path / "whole")
    for stop in random.Random(0).sample(range(1, steps), 20):
        out = tmp_path / f"stop-{stop}"
        settings = config(world, out, steps=steps)
        with monkeypatch.context() as patch:
            stop_at(patch, stop)
            assert train.main(settings) == PAUSED
        child = run_program(settings, tmp_path)
        _, said = child.communicate(timeout=120)
        assert child.returncode == 0, said
        assert (digest(out, steps), losses(out)) == ended


def test_on_a_quantised_base_as_well(world, reference, tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    ended = []
    for name in ("whole", "stopped"):
        settings = config(world, tmp_path / name, steps=STEPS, quantise="int8")
        if name == "stopped":
            with monkeypatch.context() as patch:
                stop_at(patch, 3)
                assert train.main(settings) == PAUSED
        assert train.main(settings) == 0
        ended.append((digest(tmp_path / name, STEPS), losses(tmp_path / name)))
    assert ended[0] == ended[1] != reference
    assert ended[0][1][1]["pixel"] == pytest.approx(reference[1][1]["pixel"], rel=0.2)
