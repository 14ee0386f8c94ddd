"""The annotator is a command: what it is given, what it must give back, how it may fail."""

import json
import sys
from pathlib import Path

import pytest
import torch

from core.errors import UserError
from core.images import read_image
from data_balancing.annotator_command import annotate, read_masks, write_task

LABEL = """
import sys, pathlib
from PIL import Image
folder = pathlib.Path(sys.argv[-1])
for path in sorted((folder / "images").glob("*.png")):
    bright = Image.open(path).convert("L").point(lambda v: 255 if v > 127 else 0)
    bright.save(folder / "masks" / path.name)
(folder / "calls").open("a").write("x")
"""
IMAGES = torch.zeros(2, 3, 8, 8)
IMAGES[1, :, :4] = 1.0


def command(body=LABEL):
    return [sys.executable, "-c", body]


def test_images_out_masks_back(tmp_path):
    write_task(tmp_path, IMAGES, ["a hand", "a face"])
    assert torch.equal(read_image(tmp_path / "images" / "00001.png"), IMAGES[1])
    said = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert said[1] == {"image": "images/00001.png", "prompt": "a face"}
    assert annotate(tmp_path, command())
    masks = read_masks(tmp_path, 8, 8)
    assert torch.equal(masks, IMAGES[:, :1])


def test_a_command_that_changes_folder_finds_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_task(Path("task"), IMAGES, ["a", "b"])
    assert annotate(Path("task"), command("import os; os.chdir('/')" + LABEL))


def test_labels_that_are_there_are_not_made_again(tmp_path):
    write_task(tmp_path, IMAGES, ["a", "b"])
    annotate(tmp_path, command())
    write_task(tmp_path, IMAGES, ["a", "b"])
    annotate(tmp_path, command())
    assert (tmp_path / "calls").read_text() == "x"
    write_task(tmp_path, 1 - IMAGES, ["a", "b"])  # control: other images, other labels
    annotate(tmp_path, command())
    assert (tmp_path / "calls").read_text() == "xx"
    assert torch.equal(read_masks(tmp_path, 8, 8), (1 - IMAGES)[:, :1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-annotator"], "cannot be started"),
        (command("raise SystemExit(3)"), "exit 3"),
        (command("pass"), "without a mask"),
    ],
)
def test_faults_are_named(tmp_path, words, message):
    write_task(tmp_path, IMAGES, ["a", "b"])
    with pytest.raises(UserError, match=message):
        annotate(tmp_path, words)


def test_a_mask_of_another_size(tmp_path):
    write_task(tmp_path, IMAGES, ["a", "b"])
    annotate(tmp_path, command())
    with pytest.raises(UserError, match="images' size"):
        read_masks(tmp_path, 16, 16)


def test_a_signal_ends_the_annotator(tmp_path):
    write_task(tmp_path, IMAGES, ["a", "b"])
    waiting = command("import time; time.sleep(60)")
    assert annotate(tmp_path, waiting, stop=lambda: True) is False


def test_no_shell_reads_the_words(tmp_path):
    write_task(tmp_path, IMAGES, ["a", "b"])
    annotate(tmp_path, [*command(), "; touch sentinel $(touch sentinel)"])
    assert not (tmp_path / "sentinel").exists()
