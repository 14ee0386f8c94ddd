"""The detector refreshed from labels of the treated model: mixed, kept, resumed."""

import sys

import numpy as np
import pytest
import torch

from core import checkpoint
from core.run import PAUSED, Run
from core.samples import Record, Sample
from detector.augmentation import NO_AUGMENTATION, Augmentation
from tests.treat.setting import build, config, digest, losses
from treat import train
from treat.refresh import Mixed

# All dark pixels are artifacts, says this annotator.
LABEL = """
import sys, pathlib
from PIL import Image
folder = pathlib.Path(sys.argv[-1])
for path in sorted((folder / "images").glob("*.png")):
    dark = Image.open(path).convert("L").point(lambda v: 255 if v < 127 else 0)
    dark.save(folder / "masks" / path.name)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


def settings(world, out, **changes):
    numbers = {"refresh_every": 2, "refresh_images": 2, "refresh_steps": 2, "watch_every": 0}
    words = (sys.executable, "-c", LABEL)
    return config(world, out, **{"annotator": words, "steps": 5, **numbers, **changes})


def sample(key):
    return Sample(key, np.zeros((4, 4, 3), np.uint8), None, Record(key=key, source="human"))


def test_old_and_new_in_turn():
    old, new = [sample(key) for key in "abc"], [sample("x")]
    assert [one.key for one in Mixed(old, new)] == ["a", "x", "b", "x", "c", "x"]
    assert [one.key for one in Mixed([], new)] == ["x"]


def test_refreshed_saved_and_resumed_to_the_bit(world, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main(settings(world, whole, checkpoint_every=2))
    folders = sorted(path.name for path in (whole / "refresh").iterdir())
    assert folders == ["step-00000002", "step-00000004"]
    stems = ("adapter", "optimizer", "detector")
    last = checkpoint.load(whole / "checkpoints", 5)
    before = checkpoint.load(whole / "checkpoints", 4)
    assert last.state["refreshes"] == [2, 4] and before.state["refreshes"] == [2]
    name = next(name for name in last.tensors["detector"] if name.endswith("weight"))
    assert not torch.equal(last.tensors["detector"][name], before.tensors["detector"][name])
    with monkeypatch.context() as patch:
        asked = []
        patch.setattr(Run, "interrupted", property(lambda _: asked.append(1) or len(asked) > 2))
        assert train.main(settings(world, stopped, checkpoint_every=2)) == PAUSED
    assert train.main(settings(world, stopped, checkpoint_every=2)) == 0
    assert digest(stopped, 5, stems) == digest(whole, 5, stems)
    assert losses(stopped) == losses(whole)


def test_refreshes_vary_their_images_as_asked(world, tmp_path):
    def refreshed(name, augmentation):
        out = tmp_path / name
        train.main(settings(world, out, steps=3, refresh_augmentation=augmentation))
        return digest(out, 3, ("detector",))

    plain = refreshed("plain", NO_AUGMENTATION)
    assert refreshed("again", NO_AUGMENTATION) == plain
    assert refreshed("varied", Augmentation()) != plain
