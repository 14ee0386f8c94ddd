"""The miniature's feature network: its questions, its training, and what the shipped one sees."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from core.run import PAUSED, Run
from core.seeds import generator
from detector.features import Description, open_features
from detector.set_metrics import Fid, inside, kid
from miniature import learn_features
from miniature.faults import FAULTS, plant
from miniature.law import CATEGORIES, draw
from miniature.learn_features import NAME, UNASKED, Taught, answered, marks, questions, renders
from miniature.paint import render

EACH = 120
"""Sound images of a category."""
SHIPPED = Path(__file__).parents[2] / "miniature/features"


def test_every_question_is_asked_of_its_own_category():
    for name, law in CATEGORIES.items():
        scenes = draw(name, 20, generator(1))
        found = answered(scenes)
        asked = {question for question, said in found.items() if (said != UNASKED).any()}
        own = {question for question in questions() if question.startswith(f"{name}-")}
        assert asked == {"category"} | own
        assert all((found[question] != UNASKED).all() for question in asked)
        assert all((found[question] < questions()[question]).all() for question in asked)
        for factor in law.factors:
            assert torch.equal(found[f"{name}-{factor}"], scenes.factors[factor])


def test_marks_are_shares_of_right_answers():
    model = Taught(Description(name="toy"), seed=0).eval()
    for head in model.heads.values():
        head.weight.data.zero_()
        head.bias.data.copy_(torch.arange(len(head.bias), 0, -1.0))  # always the first answer
    images, answers = renders(200, 0, 1)
    found = marks(model, images, answers)
    assert found["category"] == pytest.approx(0.2)
    first = (answers["face-mouth"] == 0).sum() / (answers["face-mouth"] != UNASKED).sum()
    assert found["face-mouth"] == pytest.approx(first.item())


def settings(out, **changes):
    few = {"renders": 40, "held_out": 20, "steps": 6, "batch": 8, "checkpoint_every": 2}
    return learn_features.Config.model_validate({"out": out, "device": "cpu", **few, **changes})


def test_a_stopped_training_goes_on_to_the_bit(tmp_path, monkeypatch):
    assert learn_features.main(settings(tmp_path / "whole")) is None
    looks = iter([False] * 6)
    with monkeypatch.context() as stopped:
        stopped.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
        assert learn_features.main(settings(tmp_path / "parts")) == PAUSED
    assert not (tmp_path / "parts/features").exists()
    assert learn_features.main(settings(tmp_path / "parts")) is None
    whole, parts = (
        (tmp_path / name / "features/features.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert whole == parts
    card = json.loads((tmp_path / "parts/features/features.json").read_text())["card"]
    assert set(card["right_on_held_out_renders"]) == {"mean", *questions()}
    assert open_features(str(tmp_path / "whole/features")).name == NAME


@pytest.fixture(scope="module")
def shipped():
    return open_features(str(SHIPPED))


@pytest.fixture(scope="module")
def sound(shipped):
    """Two sets of sound images, and the first one's features."""
    real, other = (
        torch.cat(
            [render(draw(name, EACH, generator(seed, i))) for i, name in enumerate(CATEGORIES)]
        )
        for seed in (7, 8)
    )
    return shipped(real), other


def test_what_ships_says_who_it_is_and_how_well_it_reads(shipped):
    card = json.loads((SHIPPED / "features.json").read_text())["card"]
    assert shipped.name == NAME == "miniature features"
    assert card["made_by"] == "diffdoctor miniature features"
    assert card["right_on_held_out_renders"]["mean"] > 0.95
    assert (SHIPPED / "features.safetensors").stat().st_size < 2**20


def damaged(images, damage, strength):
    if damage == "noise":
        return images + 0.1 * strength * torch.randn(images.shape, generator=generator(strength))
    for _ in range(strength):
        images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return images


@pytest.mark.parametrize("damage", ["noise", "blur"])
def test_figures_grow_with_damage(shipped, sound, damage):
    real, other = sound[0], sound[1][::2]
    seen = [shipped(other), *(shipped(damaged(other, damage, s)) for s in (1, 2, 3))]
    fids = [Fid(real)(one) for one in seen]
    kids = [kid(real, one)[0] for one in seen]
    assert fids == sorted(fids) and fids[-1] > 2 * fids[0]
    assert kids == sorted(kids) and kids[-1] > 10 * abs(kids[0])
    assert inside(real, seen[0]).mean() > 0.8 > 0.6 > inside(real, seen[-1]).mean()


def test_a_lost_category_costs_its_recall_and_no_precision(shipped, sound):
    real, other = sound
    whole, part = shipped(other), shipped(other[EACH:])  # no hands
    before, after = inside(real, whole), inside(real, part)
    assert before[:EACH].mean() > 0.85 > 0.5 > after[:EACH].mean()
    assert after[EACH:].mean() > 0.85
    assert abs(inside(part, real).mean() - inside(whole, real).mean()) < 0.05


def test_planted_faults_are_farther_than_sound_images(shipped):
    """Of the same categories as the faults: what is left is the faults' own."""
    kinds = list(enumerate((kind, fault.category) for kind, fault in FAULTS.items()))
    broken = torch.cat([plant(kind, 30, generator(9, n))[1] for n, (kind, _) in kinds])
    whole, real = (
        torch.cat([render(draw(name, count, generator(seed, n))) for n, (_, name) in kinds])
        for seed, count in ((10, 30), (11, 60))
    )
    fid = Fid(shipped(real))
    assert fid(shipped(broken)) > 1.2 * fid(shipped(whole))
