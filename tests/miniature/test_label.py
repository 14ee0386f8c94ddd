"""The annotator: the oracle's masks, grown; a stopped command goes on; treat can call it."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from core.config import load_config
from core.errors import UserError
from core.heatmap import read_map
from core.images import round_to_8bit
from core.seeds import generator
from data_balancing.annotator_command import annotate, read_masks, write_task
from diffdoctor import cli
from miniature import label
from miniature.blobs import MARKED, grow
from miniature.faults import plant
from miniature.law import draw, prompts
from miniature.oracle import BLOB, Oracle
from miniature.paint import render


@pytest.fixture(scope="module")
def task() -> tuple[torch.Tensor, list[str]]:
    """Two broken bicycles and a sound one."""
    scenes, broken, _ = plant("grey-out", 2, generator(1))
    sound = draw("bicycle", 1, generator(2))
    images = round_to_8bit(torch.cat([broken, render(sound)]))
    return images, prompts(scenes) + prompts(sound)


def test_masks_are_the_oracles_grown_by_the_brush(task, tmp_path: Path):
    images, said = task
    write_task(tmp_path, images, said)
    label.main(load_config(label.Config, (), [str(tmp_path), "--grow", "2"]))
    masks = read_masks(tmp_path, 64, 64)
    expected = grow(Oracle()(images, said), 2)
    torch.testing.assert_close(masks, expected, atol=0.5 / 255 + 1e-6, rtol=0)
    assert torch.equal(label.label(images, said, grow=2), expected)
    assert label.label(images, said, grow=0).sum() < expected.sum()
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert [row["image"] for row in rows] == ["00000.png", "00001.png", "00002.png"]
    assert [row["artifact"] for row in rows] == ["1", "1", "0"]
    assert [row["prompt"] for row in rows] == said and rows[0]["category"] == "bicycle"
    assert float(rows[0]["area"]) == pytest.approx(
        float((masks[0] >= 0.5).float().mean()), abs=1e-5
    )


def test_flaws_too_small_for_the_image_rule_are_marked_and_specks_are_not():
    scene = draw("hand", 1, generator(3))
    image, said = render(scene), prompts(scene)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    image[:, :, 4:7, 50:53] = red
    image[:, :, 58:59, 58:59] = red
    image = round_to_8bit(image)
    mask = label.label(image, said, grow=0)[0, 0]
    assert MARKED <= 9 < BLOB["hand"] and not Oracle().diagnose(image, said).flagged.any()
    assert (mask[4:7, 50:53] > 0.5).all()
    assert mask[58, 58] == 0 and (mask > 0.5).sum() == 9


def test_a_stopped_command_goes_on(task, tmp_path: Path, monkeypatch):
    images, said = task
    write_task(tmp_path, images, said)
    monkeypatch.setattr(label, "BATCH", 1)
    asked, real = [], label.label

    def stopping(images, prompts, grow):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(len(images))
        return real(images, prompts, grow)

    monkeypatch.setattr(label, "label", stopping)
    with pytest.raises(KeyboardInterrupt):
        label.main(label.Config(folder=tmp_path))
    first = (tmp_path / "masks/00000.png").read_bytes()
    assert not (tmp_path / "labels.csv").exists()
    done: list[int] = []
    monkeypatch.setattr(label, "label", lambda *words: done.append(1) or real(*words))
    label.main(label.Config(folder=tmp_path))
    assert len(done) == 2 and (tmp_path / "masks/00000.png").read_bytes() == first
    assert len(list((tmp_path / "masks").iterdir())) == 3
    label.main(label.Config(folder=tmp_path))
    assert len(done) == 2 and len((tmp_path / "labels.csv").read_text().splitlines()) == 4


def test_a_mask_that_is_there_is_not_touched(task, tmp_path: Path):
    images, said = task
    write_task(tmp_path, images, said)
    label.write_map(tmp_path / "masks/00001.png", torch.full((1, 64, 64), 0.2))
    label.main(label.Config(folder=tmp_path))
    assert np.unique(read_map(tmp_path / "masks/00001.png").numpy()).tolist() == [np.float32(0.2)]


@pytest.mark.slow
def test_treat_can_call_it(task, tmp_path: Path):
    """As `treat --annotator` does: a process of its own."""
    images, said = task
    write_task(tmp_path, images, said)
    assert annotate(tmp_path, [sys.executable, "-m", "diffdoctor.cli", "miniature", "label"])
    assert (read_masks(tmp_path, 64, 64).amax(dim=(1, 2, 3)) > 0.5).tolist() == [True, True, False]


def test_unusable_folders_are_refused_in_one_line(task, tmp_path: Path, capsys):
    images, said = task
    with pytest.raises(SystemExit) as stop:
        cli.main(["miniature", "label", str(tmp_path)])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    write_task(tmp_path, images, said)
    (tmp_path / "prompts.jsonl").write_text('{"image": "images/00000.png", "prompt": "x"}\n')
    with pytest.raises(UserError, match="no prompt for 00001.png"):
        label.main(label.Config(folder=tmp_path))
    write_task(tmp_path, images, ["a cat", *said[1:]])
    with pytest.raises(UserError, match="no prompt 'a cat'"):
        label.main(label.Config(folder=tmp_path))
