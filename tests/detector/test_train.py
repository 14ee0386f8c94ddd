"""The real program: two steps, the exported folder, and a resume that is exact to the bit."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from core import checkpoint
from core.errors import UserError
from core.heatmap import read_map
from core.interrupts import SIGNALS
from core.run import PAUSED, Run
from core.samples import Record
from core.seeds import mix
from core.shard_writer import ShardWriter
from core.wishes import ask
from detector import train
from detector.augmentation import NO_AUGMENTATION
from detector.held_out import WORST, worst
from detector.segformer import SegformerConfig, SegformerDetector, freeze
from detector.storage import load_detector
from tests.detector.toy import toy_samples, toy_shards

STEPS = 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return toy_shards(tmp_path_factory.mktemp("data") / "shards", 24)


def settings(shards, out, **changes):
    values = {
        "data": (shards,),
        "out": out,
        "steps": STEPS,
        "batch": 4,
        "warmup": 1,
        "valid_share": 0.3,
        "valid_every": 3,
        "checkpoint_every": 2,
        "alignment": 0.5,
        "alignment_batch": 2,
        "alignment_sound": 1,
    }
    return train.Config.model_validate(values | changes)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A training that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train.main(settings(shards, out)) is None
    return out


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("valid/pixel_ap")) for line in lines]


def tensors(run):
    saved = checkpoint.load_newest(run / "checkpoints")
    assert saved is not None and saved.path.name == max(p.name for p in saved.path.parent.iterdir())
    return {f"{stem}/{name}": t for stem, each in saved.tensors.items() for name, t in each.items()}


def test_the_run_holds_what_was_promised(whole):
    assert [step for step, *_ in losses(whole)] == [1, 2, 3, 4, 5]
    assert (whole / "pictures" / "step-00000003.png").is_file()
    summary = json.loads((whole / "summary.json").read_text())
    assert set(summary["held_out"]) >= {"pixel_ap", "mse", "false_positive_images"}
    card = json.loads((whole / "detector" / "detector.json").read_text())["card"]
    assert card["seed"] == 0 and card["data"] == ["shards"] and "licence" in card


def test_the_worst_of_the_held_out_images_are_shown(whole):
    held = json.loads((whole / "held_out.json").read_text())
    summary = json.loads((whole / "summary.json").read_text())
    assert held["groups"]["overall"]["all"] == summary["held_out"]
    assert set(held["groups"]["category"]) == {"bar", "disc"}
    errors = [one["error"] for one in held["worst"]]
    assert errors == sorted(errors, reverse=True) and 1 < len(errors) <= WORST
    for number, error in enumerate(errors):
        parts = [whole / f"held_out/{number:05d}-{kind}.png" for kind in ("map", "label")]
        shown, label = map(read_map, parts)
        assert (shown - label).square().mean() == pytest.approx(error, abs=0.01)
        assert parts[0].with_name(f"{number:05d}-image.png").is_file()


def test_worst_is_worst_first():
    records = [Record(key=name, source="human", category=name) for name in "abc"]
    target = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]).view(3, 1, 1, 2)
    maps = torch.tensor([[0.9, 0.0], [0.0, 0.9], [0.0, 0.0]]).view(3, 1, 1, 2)
    found = worst(records, maps, target, 0.5)
    assert [(one["key"], one["missed"], one["false_alarm"]) for one in found] == [
        ("c", 0.5, 0), ("b", 0, 0.5), ("a", 0, 0),
    ]  # fmt: skip


def test_the_exported_detector_is_the_average(whole):
    detector = load_detector(whole)
    average = checkpoint.load_newest(whole / "checkpoints").tensors["average"]
    assert all(torch.equal(t, average[name]) for name, t in detector.state_dict().items())


def test_resume_in_a_fresh_process_is_exact(shards, whole, tmp_path, monkeypatch):
    _stop_and_resume(shards, whole, tmp_path, monkeypatch, stop=2)


def test_other_data_under_the_same_name_is_refused(tmp_path):
    data, plain = tmp_path / "shards", {"steps": 1, "alignment": 0.0, "valid_every": 9}
    for seed, message in ((0, None), (1, "other contents of --data than lie there"), (0, None)):
        shutil.rmtree(data, ignore_errors=True)
        config = settings(toy_shards(data, 24, seed), tmp_path / "run", **plain)
        if message is None:
            assert train.main(config) is None
        else:
            with pytest.raises(UserError, match=message):
                train.main(config)


@pytest.mark.trial
@pytest.mark.parametrize("trial", range(20))
def test_resume_from_any_step(shards, tmp_path, monkeypatch, trial):
    """Stopped at a step of its own, with its own seed."""
    changes = {"steps": 12, "seed": trial, "checkpoint_every": 4}
    train.main(settings(shards, tmp_path / "whole", **changes))
    stop = mix(trial) % 11 + 1
    _stop_and_resume(shards, tmp_path / "whole", tmp_path, monkeypatch, stop=stop, **changes)


def _stop_and_resume(shards, whole, tmp_path, monkeypatch, *, stop, **changes):
    out = tmp_path / "run"
    config = settings(shards, out, **changes)
    logged = []
    log = Run.log
    monkeypatch.setattr(
        Run, "log", lambda run, step, **f: (logged.append(step), log(run, step, **f))
    )
    monkeypatch.setattr(Run, "interrupted", property(lambda run: len(logged) >= stop))
    assert train.main(config) == PAUSED
    (path := tmp_path / "same.json").write_text(config.model_dump_json())
    program = (
        "import json, sys; from detector import train; "
        "train.main(train.Config.model_validate(json.load(open(sys.argv[1]))))"
    )
    gc.collect()  # the paused run's lock belongs to this process until its object is forgotten
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(whole)
    ours, theirs = tensors(out), tensors(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    exported = [(run / "detector" / "detector.safetensors").read_bytes() for run in (out, whole)]
    assert exported[0] == exported[1]


def test_asked_for_a_sheet_and_a_checkpoint_it_computes_the_same(
    shards, whole, tmp_path, monkeypatch
):
    out, held, log = tmp_path / "run", [], Run.log

    def logged(run, step, **figures):
        log(run, step, **figures)
        held.append(checkpoint.steps(run.checkpoints))
        if step in (1, 4):
            assert all(ask(run.folder, wish) for wish in ("sample", "save"))

    monkeypatch.setattr(Run, "log", logged)
    train.main(settings(shards, out, checkpoint_every=100))
    assert losses(out) == losses(whole)
    ours, theirs = tensors(out), tensors(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    drawn = [int(path.stem[5:]) for path in sorted((out / "pictures").iterdir())]
    assert drawn == [2, 3, 5]  # at 2 asked for, at 3 and 5 due
    assert held == [[], [], [2], [2], [2]] and checkpoint.steps(out / "checkpoints") == [2, 5]


def test_signals_are_the_callers_again(shards, tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    train.main(settings(shards, tmp_path / "run", steps=1))
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(UserError, match="device"):
        train.main(settings(shards, tmp_path / "other", device="gpu"))
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not (tmp_path / "other").exists()


def test_another_seed_is_another_detector(shards, whole, tmp_path):
    train.main(settings(shards, tmp_path / "other", seed=1, steps=1))
    other = json.loads((tmp_path / "other" / "metrics.jsonl").read_text().splitlines()[0])
    assert other["loss"] != losses(whole)[0][1]


def test_training_may_start_from_a_detector(shards, whole, tmp_path):
    train.main(settings(shards, tmp_path / "more", init=whole, steps=1))
    card = json.loads((tmp_path / "more" / "detector" / "detector.json").read_text())["card"]
    assert card["initial"] == "run"


def test_the_folder_of_another_program_is_refused(shards, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty"):
        train.main(settings(shards, tmp_path / "letters"))
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


def test_nothing_heavy_happens_before_the_data_is_there(tmp_path):
    with pytest.raises(UserError, match="no data folder"):
        train.main(settings(tmp_path / "none", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_fine_tuning_learns_in_place_and_is_pure():
    samples = toy_samples(12)
    tuned = []
    for _ in range(2):
        detector = SegformerDetector(SegformerConfig(), seed=2)
        before = {name: t.clone() for name, t in detector.state_dict().items()}
        same = train.fine_tune(detector, samples, 3, 7, batch=4, augmentation=NO_AUGMENTATION)
        assert same is detector and not detector.training
        tuned.append(detector.state_dict())
        assert any(not torch.equal(before[n], t) for n, t in tuned[-1].items())
    assert all(torch.equal(tuned[0][n], tuned[1][n]) for n in tuned[0])


def test_fine_tuning_refuses_a_frozen_detector_and_no_data():
    with pytest.raises(UserError, match="no sample"):
        train.fine_tune(SegformerDetector(SegformerConfig()), [], 1)
    with pytest.raises(ValueError, match="frozen"):
        train.fine_tune(freeze(SegformerDetector(SegformerConfig())), toy_samples(2), 1)


def test_images_of_two_sizes_are_refused_before_the_run_folder_is_begun(shards, tmp_path):
    """Else the same command with --size would be refused as one of other settings."""
    large = toy_shards(tmp_path / "large", 6, size=40)
    given = {"data": (shards, large), "steps": 2}
    with pytest.raises(UserError, match="2 sizes; give one with --size"):
        train.main(settings(shards, tmp_path / "run", **given))
    apart = {"alignment_data": (shards, large), "alignment_sound": 0, "steps": 2}
    with pytest.raises(UserError, match="2 sizes; give one with --size"):
        train.main(settings(shards, tmp_path / "run", **apart))
    assert not (tmp_path / "run").exists()
    train.main(settings(shards, tmp_path / "run", **given, size=32))
    assert (tmp_path / "run/summary.json").exists()


def test_the_gradient_is_taught_from_data_of_its_own(shards, tmp_path):
    other = toy_shards(tmp_path / "other", 12, seed=5)
    taught = {"steps": 2, "alignment": 0.5, "alignment_batch": 2, "alignment_data": (other,)}
    train.main(settings(shards, tmp_path / "run", **taught))
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert all(0 < json.loads(line)["misalignment"] < 2 for line in lines)
    with ShardWriter(tmp_path / "bare") as writer:
        for sample in toy_samples(12):
            if sample.reference is None:
                writer.write(sample)
    large = toy_shards(tmp_path / "large", 12, size=40)
    taught["alignment_data"] = (large,)
    with pytest.raises(UserError, match="give one with --size"):
        train.main(settings(shards, tmp_path / "never", **taught))
    with pytest.raises(ValueError, match="alignment_sound"):
        settings(shards, tmp_path / "never", alignment_sound=3)
    taught["alignment_data"] = (tmp_path / "bare",)
    with pytest.raises(UserError, match="references/"):
        train.main(settings(shards, tmp_path / "never", **taught))
    assert not (tmp_path / "never").exists()
