"""The endurance benchmark's bookkeeping: what an export lost against the best look, and judging."""

import json

import numpy as np
import pytest
import torch

from benchmarks import endurance
from core.images import write_image
from core.shards import ShardStore
from diffdoctor.demo_data import write_renders
from miniature.bases import base_folder
from miniature.prompts import split


def test_what_an_export_lost_is_paired_with_the_best_look():
    flagged = {
        0: np.array([1.0, 1.0, 1.0, 0.0]),
        8: np.array([0.0, 0.0, 1.0, 0.0]),
        16: np.array([0.0, 1.0, 1.0, 0.0]),
    }
    looks = {step: {"flagged": values} for step, values in flagged.items()}
    found = endurance.lost(looks, exported=16)
    assert found["best"] == 8 and found["more"] == pytest.approx(0.25)
    assert found["interval"][0] == pytest.approx(0.0)
    assert endurance.lost(looks, exported=8)["more"] == 0


def test_every_look_is_judged_with_its_prompts(tmp_path):
    write_renders(tmp_path / "sound", str(base_folder("newest")), split()["search"], 12, seed=1)
    samples = list(ShardStore(tmp_path / "sound"))
    noise = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    watched = tmp_path / "watched"
    for step in (0, 8):
        folder = watched / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for i, sample in enumerate(samples):
            picture = sample.image.transpose(2, 0, 1) / 255 if step else noise.transpose(2, 0, 1)
            write_image(folder / f"{i:05d}.png", torch.as_tensor(picture).float())
    lines = [json.dumps({"prompt": sample.record.prompt}) + "\n" for sample in samples]
    (watched / "prompts.jsonl").write_text("".join(lines))
    looks = endurance.judge(watched)
    assert list(looks) == [0, 8]
    assert looks[0]["flagged"].mean() > 0.9 > 0.1 > looks[8]["flagged"].mean()
    assert looks[8]["attribute_match"] == 1
