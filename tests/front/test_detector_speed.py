"""A detector's speed is measured of the step that `detector train` takes, preset by preset."""

import json
import math

import pytest
import torch

from benchmarks import detector_speed as bench
from core.config import presets
from core.errors import UserError
from detector import train
from detector.segformer import SegformerDetector
from tests.detector.toy import toy_shards

TINY = {"preset": "mit-b5-24gb", "variant": "nano", "side": 64, "batch": 2, "n": 3, "repeats": 1}
OF_THE_STEP = ("augmentation", "seed", "batch", "clip", "loss", "size", "autocast")


def recorded(monkeypatch, module):
    """The settings of every step that the module takes; the step is taken too."""
    given, take = [], module.learn_step

    def step(learner, *words, **named):
        augmentation = dict(zip(("samples", "augmentation"), words, strict=True))
        given.append({**augmentation, **named, "learner": learner})
        return take(learner, *words, **named)

    monkeypatch.setattr(module, "learn_step", step)
    return given


def test_a_presets_speed_and_memory_are_measured_on_a_cpu(tmp_path, monkeypatch):
    steps = recorded(monkeypatch, bench)
    path = tmp_path / "found.json"
    bench.main(bench.Config(**TINY, device="cpu", json_file=path))
    found = json.loads(path.read_text())
    for name in ("learning", "learning, read", "labelling", "bare", "ratio", "peak"):
        assert math.isfinite(found[name]) and found[name] > 0, name
    for name in ("learning", "learning, read"):
        warm, lap = found[f"laps of {name}"]
        assert found[name] == pytest.approx(2 / lap) and warm > 0
    assert len(steps) == 4 and isinstance(steps[0]["samples"], list)
    assert not isinstance(steps[-1]["samples"], list)  # read from its shard each time
    assert found["settings"]["variant"] == "nano" and found["settings"]["checkpoint_blocks"]
    fresh = SegformerDetector(steps[0]["learner"].model.config)
    learnt = steps[0]["learner"].model.state_dict()
    assert any(not torch.equal(t, learnt[name]) for name, t in fresh.state_dict().items())


def test_its_step_is_the_programs(tmp_path, monkeypatch):
    """Of the same settings, `detector train` asks for the same step."""
    ours, theirs = recorded(monkeypatch, bench), recorded(monkeypatch, train)
    bench.main(bench.Config(**TINY, device="cpu"))
    settings = bench.settings_of(bench.Config(**TINY))
    data = toy_shards(tmp_path / "data", 12)
    given = {"data": (data,), "out": tmp_path / "run", "steps": 1, "device": "cpu"}
    train.main(settings.model_copy(update=given))
    for name in OF_THE_STEP:
        assert ours[0][name] == theirs[0][name], name
    for name in ("ema", "weight_decay"):
        assert getattr(ours[0]["learner"], name) == getattr(theirs[0]["learner"], name)
    networks = [steps[0]["learner"].model for steps in (ours, theirs)]
    assert {n: t.shape for n, t in networks[0].state_dict().items()} == {
        n: t.shape for n, t in networks[1].state_dict().items()
    }


@pytest.mark.parametrize("name", presets(train.Config))
def test_a_preset_is_taken_as_it_stands(name):
    settings = bench.settings_of(bench.Config(preset=name))
    assert train.Config.presets is not None
    words = ["--data", "none", "--out", "none"]
    asked = bench.core.config.load_config(
        train.Config, train.Config.presets / f"{name}.yaml", words
    )
    assert settings == asked


def test_an_unknown_preset_is_refused_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(bench, "fill", lambda *_, **__: pytest.fail("was begun"))
    with pytest.raises(UserError, match="did you mean 'mit-b5-24gb'"):
        bench.main(bench.Config(preset="mit-b5-24"))
    with pytest.raises(UserError, match="there is no device 'gpu'"):
        bench.main(bench.Config(device="gpu"))
