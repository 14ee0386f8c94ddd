"""Prompts that taught an adapter are told where it is judged by them."""

import json
import shutil

import pytest

from core.storage import read_lines
from tests.tiny import SIZE
from tests.treat.setting import build, config
from treat import evaluate, export, train
from treat.adapter import read_adapter
from treat.taught import taught_by

WATCHED = {"a tree of 0 leaves", "a tree of 1 leaves"}
TAUGHT = {"a hand", "a face", "a bicycle", "a sign", "a tree"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """With a treatment, one of real images alone, and the former's LoRA file."""
    folder = build(tmp_path_factory.mktemp("world"))
    watched = {"steps": 1, "watch_prompts": folder / "watched.txt", "watch_images": 2}
    train.main(config(folder, folder / "treated", **watched))
    train.main(config(folder, folder / "offline", **watched, pixel_weight=0, lock_weight=0))
    export.main(export.Config(run=folder / "treated", out=folder / "file", step="last"))
    return folder


def dark(images, prompts):
    return (images.mean(dim=1, keepdim=True) < 0.5).float()


def judged(world, out, prompts):
    file = world / f"{out.name}.txt"
    file.write_text("".join(f"{prompt}\n" for prompt in prompts))
    given = {
        "base": str(world / "base"),
        "prompts": file,
        "adapters": tuple(f"{name}={world / name}" for name in ("treated", "offline", "file")),
        "out": out,
        "step": "last",
        "height": SIZE,
        "width": SIZE,
        "shown": 1,
    }
    evaluate.main(evaluate.Config(**given), dark)
    said = json.loads((out / "summary.json").read_text())["taught"]
    warned = [line for line in read_lines(out / "events.jsonl") if line["level"] == "warn"]
    return said, [line["message"] for line in warned], (out / "report.html").read_text()


def test_they_are_counted_and_told(world, tmp_path):
    shown = ["a hand", "a tree of 1 leaves", "a tree of 9 leaves", "a boat"]
    said, warned, page = judged(world, tmp_path / "some", shown)
    assert said == {"treated": 2, "offline": 1, "file": None}
    assert ["2 of these 4 prompts taught 'treated'" in warned[0], len(warned)] == [True, 2]
    assert "2 of the prompts taught" in page


def test_held_out_ones_are_not(world, tmp_path):
    said, warned, page = judged(world, tmp_path / "none", ["a tree of 9 leaves", "a boat"])
    assert said == {"treated": 0, "offline": 0, "file": None}
    assert warned == []
    assert [page.count("of the prompts taught"), "Whether any of the prompts" in page] == [1, True]
    events = (tmp_path / "none/events.jsonl").read_text()
    assert "taught 'file' is not known" in events and "taught 'treated'" not in events


def test_only_what_is_rewarded_teaches(world):
    treated, offline = (world / name for name in ("treated", "offline"))
    assert taught_by(treated, read_adapter(treated, "last")) == TAUGHT | WATCHED
    assert taught_by(offline, read_adapter(offline, "last")) == WATCHED
    kept = treated / "checkpoints/step-00000001"
    assert taught_by(kept, read_adapter(kept)) == TAUGHT | WATCHED


def edited(run):
    run["prompts"].write_text("a boat\n")


def gone(run):
    run["prompts"].unlink()


def watched(run):
    run["watched"].write_text("a boat\n")


def damaged(run):
    text = (run["folder"] / "config.yaml").read_text()
    (run["folder"] / "config.yaml").write_text(text.replace("watch_images: 2", "watch_images: few"))


def built_on(run):
    text = (run["folder"] / "config.yaml").read_text()
    (run["folder"] / "config.yaml").write_text(text.replace("start: null", "start: runs/first"))


def unnoted(run):
    (run["folder"] / "inputs.json").unlink()


def moved(run):
    """Alone, its files of prompts stay where they were; nothing is wrong."""


@pytest.mark.parametrize("harm", [edited, gone, watched, damaged, built_on, unnoted, moved])
def test_what_has_changed_since_is_not_believed(world, tmp_path, harm):
    run = {name: tmp_path / f"{name}.txt" for name in ("prompts", "watched")}
    run["folder"] = tmp_path / "run"
    shutil.copytree(world / "treated", run["folder"])
    settings = run["folder"] / "config.yaml"
    for name in ("prompts", "watched"):
        shutil.copy(world / f"{name}.txt", run[name])
        settings.write_text(
            settings.read_text().replace(str(world / f"{name}.txt"), str(run[name]))
        )
    harm(run)
    found = taught_by(run["folder"], read_adapter(run["folder"], "last"))
    assert found == (TAUGHT | WATCHED if harm is moved else None)
