"""A run goes on with what it was begun with, and as many images an update, or is refused."""

import json
import shutil

import pytest

from core.errors import UserError
from core.run import PAUSED, Run
from tests.tiny import save_tiny
from tests.tiny.clip import save_clip
from tests.treat.setting import build, config, digest, losses, save_toy_detector
from tests.treat.test_resume import stop_at
from treat import inputs, train
from treat.inputs import NOTE, hold_to_inputs


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built") / "world")


def copied(built):
    """What a test may change, as it was built and at the same place in every test."""
    shutil.rmtree(built.parent / "copy", ignore_errors=True)
    return shutil.copytree(built, built.parent / "copy")


@pytest.fixture
def world(built):
    return copied(built)


@pytest.fixture(scope="module")
def first(built):
    """A run of one step."""
    out = built.parent / "run"
    assert train.main(config(copied(built), out, steps=1)) == 0
    return out


@pytest.fixture
def run(first, world, tmp_path):
    """Its copy, to go on with."""
    return shutil.copytree(first, tmp_path / "run")


def reverse_lines(world):
    lines = (world / "prompts.txt").read_text().splitlines(keepends=True)
    (world / "prompts.txt").write_text("".join(reversed(lines)))


def teach_another_detector(world):
    save_toy_detector(world / "detector", seed=9)


def swap_images(world):
    first, second = (world / f"real/{i}.png" for i in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def set_shift(world):
    path = world / "base/scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace('"shift": 3.0', '"shift": 2.0'))


CHANGES = {
    "the order of prompts": (reverse_lines, "--prompts"),
    "a detector": (teach_another_detector, "--detector"),
    "images that change places": (swap_images, "--offline"),
    "a caption": (lambda world: (world / "real/0.txt").write_text("a foot"), "--offline"),
    "one image less": (lambda world: (world / "real/9.png").unlink(), "--offline"),
    "weights of the same sizes": (lambda world: save_tiny(world / "base", seed=1), "--base"),
    "a number in a config": (set_shift, "--base"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_input_is_refused_until_the_former_is_back(name, built, world, run):
    change, option = CHANGES[name]
    figures, goes_on = losses(run), config(world, run, steps=2)
    change(world)
    with pytest.raises(UserError, match=f"other contents of {option} than lie there now"):
        train.main(goes_on)
    assert losses(run) == figures
    copied(built)  # other times of change, the same contents
    assert train.main(goes_on) == 0
    assert sorted(losses(run)) == [0, 1, 2]


def test_every_setting_that_names_an_input_is_noted(world, tmp_path):
    save_clip(world / "clip")
    (world / "watched.txt").write_text("a thing\n")
    named = {
        "further_detectors": (world / "second",),
        "image_reward": world / "clip",
        "watch_prompts": world / "watched.txt",
        "picture_prompts": world / "watched.txt",
    }
    settings = config(world, tmp_path / "run", **named)
    before = inputs.digests(settings)
    assert set(before) == {"base", "prompts", "detector", "second_detector", "offline", *named}
    save_clip(world / "clip", seed=1)
    (world / "watched.txt").write_text("another\n")
    shutil.copytree(world / "detector", world / "second", dirs_exist_ok=True)
    after = inputs.digests(settings)
    assert {n for n in before if before[n] != after[n]} == {"second_detector", *named}


def test_before_the_first_checkpoint_nothing_binds(world, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train, "learn", lambda *_: (_ for _ in ()).throw(UserError("too early")))
        with pytest.raises(UserError, match="too early"):
            train.main(config(world, tmp_path / "run", steps=2))
    assert (tmp_path / "run" / NOTE).is_file()
    reverse_lines(world)
    for out in ("run", "fresh"):
        assert train.main(config(world, tmp_path / out, steps=2)) == 0
    assert digest(tmp_path / "run", 2) == digest(tmp_path / "fresh", 2)
    assert losses(tmp_path / "run") == losses(tmp_path / "fresh")


def test_a_run_from_before_there_was_a_note_goes_on(world, run):
    (run / NOTE).unlink()
    reverse_lines(world)
    with pytest.raises(UserError, match=r"other settings \(batch differ\)"):  # nobody knows of what
        train.main(config(world, run, steps=2, batch=2))
    assert train.main(config(world, run, steps=2)) == 0
    reverse_lines(world)
    with pytest.raises(UserError, match="other contents of --prompts"):
        train.main(config(world, run, steps=3))


def test_a_damaged_note_says_what_to_do(world, run):
    for content in ("{", "[]"):
        (run / NOTE).write_text(content)
        with pytest.raises(UserError, match=r"inputs.json is damaged: remove it"):
            train.main(config(world, run, steps=2))


def test_the_images_of_an_update_stay_as_many(world, tmp_path, monkeypatch):
    settings = config(world, tmp_path / "run", steps=3, accumulation=2)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert train.main(settings) == PAUSED
    with pytest.raises(UserError, match="with 2 images .* one process give .* of 2, or"):
        train.main(settings.model_copy(update={"accumulation": 1}))
    assert train.main(settings.model_copy(update={"accumulation": 1, "batch": 2})) == 0
    assert train.main(config(world, tmp_path / "whole", steps=3, accumulation=2)) == 0
    moved, whole = (losses(tmp_path / out)[3] for out in ("run", "whole"))
    assert moved["pixel"] == pytest.approx(whole["pixel"], rel=1e-3)


@pytest.mark.parametrize(
    ("processes", "cure"),
    [
        (1, "would be 3: with one process give a --batch x --accumulation of 6"),
        (3, "would be 9: with 3 processes give a --batch x --accumulation of 2"),
        (4, "would be 12: start a number of processes that divides 6"),
    ],
)
def test_another_number_of_processes_is_told_how(world, tmp_path, processes, cure):
    settings = config(world, tmp_path / "run", batch=3)
    with Run.start(settings, settings.out, "treat") as run:
        hold_to_inputs(settings, run, processes=2)
        (run.checkpoints / "step-00000001").mkdir()
        hold_to_inputs(settings, run, processes=2)
        with pytest.raises(UserError, match=f"{cure}, or"):
            hold_to_inputs(settings, run, processes)
        assert json.loads((run.folder / NOTE).read_text())[inputs.IMAGES] == 6


def test_a_hub_base_is_known_by_its_commit(world, tmp_path, monkeypatch):
    found = []
    for commit in ("abc", "abd"):
        snapshot = shutil.copytree(world / "base", tmp_path / "snapshots" / commit)
        monkeypatch.setattr(inputs, "locate", lambda *_, at=snapshot, **__: at)
        found.append(inputs.of_base("some-lab/some-model"))
        for weights in snapshot.glob("*/*.safetensors"):
            weights.unlink()  # of an estimate only the configs are fetched
        assert inputs.of_base("some-lab/some-model") == found[-1]
    assert found[0] != found[1]
