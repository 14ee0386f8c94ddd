"""The oracle behind three questions: looks once, reads what was painted."""

import numpy as np
import pytest
import torch

from core.images import round_to_8bit
from core.seeds import generator
from diffdoctor.judge import OracleJudge
from miniature.law import draw, prompts
from miniature.paint import render


@pytest.fixture(scope="module")
def scenes():
    return draw("scenery", 6, generator(1))


def test_reads_back_what_was_painted(scenes):
    judge, said = OracleJudge(), prompts(scenes)
    images = round_to_8bit(render(scenes))
    meters = judge.meters(images, said)
    assert (meters["category"] == "scenery").all() and (meters["attribute_match"] == 1.0).all()
    assert (meters["free.scenery.horizon"] == scenes.factors["horizon"].numpy()).all()
    assert (meters["stated.scenery.tree"] == scenes.factors["tree"].numpy()).all()
    assert (meters["stated.hand.side"] == -1).all()
    assert not judge.flagged(images, said).any()


def test_a_wrong_image_does_not_match(scenes):
    """The control: each image read under a prompt that states the other tree."""
    judge, images = OracleJudge(), round_to_8bit(render(scenes))
    swap = {"round": "pine", "pine": "round"}
    kinds = [scenes.value(i, "tree") for i in range(len(scenes))]
    said = [p.replace(k, swap[k]) for p, k in zip(prompts(scenes), kinds, strict=True)]
    assert (judge.meters(images, said)["attribute_match"] < 1).all()


def test_looks_once_a_batch(scenes, monkeypatch):
    judge, said = OracleJudge(), prompts(scenes)[:2]
    images = round_to_8bit(render(scenes))[:2]
    looks = []
    diagnose = judge.oracle.diagnose
    monkeypatch.setattr(
        judge.oracle, "diagnose", lambda *words: looks.append(1) or diagnose(*words)
    )
    first = judge(images, said)
    judge.flagged(images, said)
    judge.meters(images.clone(), said)
    assert len(looks) == 1
    judge(torch.zeros_like(images), said)
    assert len(looks) == 2 and np.isfinite(first.numpy()).all()
