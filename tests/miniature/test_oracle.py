"""The oracle: valid images are sound, planted faults are found where they are; it can also miss."""

import pytest
import torch

from core.errors import UserError
from core.images import round_to_8bit
from core.seeds import generator
from miniature import oracle
from miniature.blobs import blob_sizes, grow
from miniature.calibrate import tolerant_overlap
from miniature.ceiling import Ceiling
from miniature.faults import FAULTS, acceptable, differ, plant
from miniature.law import CATEGORIES, LEXICON, draw, draw_off_grid, prompts
from miniature.oracle import Oracle
from miniature.paint import ALPHABET, render, spelling

N = 16
LEAST = {"blur": 0.6}
"""Share found; a blur of what is flat anyway is no fault that anyone sees."""


@pytest.mark.parametrize("category", CATEGORIES)
def test_valid_images_are_sound_and_read_back(category: str):
    g = generator(11)
    for scenes in (draw(category, N, g), draw_off_grid(category, N, g, tint=0.05)):
        images = round_to_8bit(render(scenes))
        found = Oracle().diagnose(images, prompts(scenes))
        assert not found.flagged.any() and found.map.max() == 0
        law = CATEGORIES[category]
        for i, shown in enumerate(found.factors):
            assert shown == {name: scenes.value(i, name) for name in law.factors}
        assert (found.pose - scenes.pose).abs().mean() < 0.3
        assert (found.nearest - images).abs().mean() < 0.01


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found_in_their_place(name: str):
    scenes, broken, _ = plant(name, N, generator(12))
    found = Oracle().diagnose(round_to_8bit(broken), prompts(scenes))
    least = LEAST.get(name, 0.9)
    assert found.flagged.float().mean() >= least
    masks = acceptable(name, scenes, broken)
    overlap = torch.stack(
        [tolerant_overlap(found.map[:, 0] > 0.5, mask) for mask in masks.unbind(1)]
    )
    assert overlap.amax(dim=0).mean() >= least - 0.2


def test_a_blind_oracle_finds_nothing(monkeypatch):
    """The control: with the outlier term priced out, the same harness sees only misses."""
    monkeypatch.setattr(oracle, "CEILING", 1e6)
    scenes, broken, _ = plant("grey-out", 4, generator(12))
    found = Oracle().diagnose(broken, prompts(scenes))
    assert not found.flagged.any() and found.map.max() == 0


def test_a_touchy_oracle_flags_what_is_sound(monkeypatch):
    """The other control: with the outlier term for nothing, valid images are flagged."""
    monkeypatch.setattr(oracle, "CEILING", -1.0)
    scenes = draw("sign", 4, generator(12))
    assert Oracle().diagnose(render(scenes), prompts(scenes)).flagged.all()


def test_the_order_and_company_of_images_do_not_matter():
    scenes = [draw(name, 2, generator(13)) for name in ("sign", "scenery")]
    images, said = torch.cat([render(s) for s in scenes]), sum(map(prompts, scenes), [])
    images[0, :, 20:40, 20:40] = 0.5
    whole = Oracle().diagnose(images, said)
    order = [2, 0, 3, 1]
    mixed = Oracle().diagnose(images[order], [said[i] for i in order])
    torch.testing.assert_close(mixed.map, whole.map[order])
    assert mixed.factors == [whole.factors[i] for i in order]
    assert whole.flagged.tolist() == [True, False, False, False]


def test_the_ceiling_pulls_towards_the_nearest_valid_image():
    scenes, broken, _ = plant("grey-out", 2, generator(14))
    found = Oracle().diagnose(broken, prompts(scenes))
    images = broken.clone().requires_grad_()
    map = Ceiling(prompts(scenes))(images)
    assert (map[found.map > 0.1] > 0.2).all() and (map[found.map == 0] == 0).all()
    map.sum().backward()
    assert images.grad is not None
    towards = (images.grad * (broken - found.nearest)).flatten(1).sum(dim=1)
    assert (towards > 0).all()


def test_unusable_questions_are_refused():
    with pytest.raises(UserError, match="64x64"):
        Oracle()(torch.zeros(1, 3, 32, 32), ["a left hand, fingers spread, tan skin, over snow"])
    with pytest.raises(UserError, match="does not know the prompt 'a cat'"):
        Oracle()(torch.zeros(1, 3, 64, 64), ["a cat"])


def test_blobs_are_counted_across_corners_and_small_gaps():
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[0, 1, 4] = mask[0, 8, 8] = True
    touching, joined = blob_sizes(mask, join=0)[0], blob_sizes(mask, join=1)[0]
    assert (touching[0, 0], touching[1, 4], touching[8, 8]) == (2, 1, 1) and touching.sum() == 6
    assert (joined[0, 0], joined[1, 4], joined[8, 8]) == (3, 3, 1) and joined.sum() == 10
    assert blob_sizes(torch.zeros(1, 4, 4, dtype=torch.bool)).sum() == 0


def test_growing_is_a_square_brush():
    map = torch.zeros(1, 1, 7, 7)
    map[0, 0, 3, 3] = 0.7
    assert grow(map, 0).sum() == pytest.approx(0.7)
    assert (grow(map, 1) == 0.7).sum() == 9 and (grow(map, 2) == 0.7).sum() == 25


# Planted faults


@pytest.mark.parametrize("name", FAULTS)
def test_faults_change_what_they_say(name: str):
    scenes, broken, changed = plant(name, N, generator(15))
    assert scenes.category == FAULTS[name].category
    assert broken.min() >= 0 and broken.max() <= 1
    assert torch.equal(changed, differ(broken, render(scenes)))
    assert changed.flatten(1).sum(dim=1).min() >= (8 if FAULTS[name].structural else 0)
    masks = acceptable(name, scenes, broken)
    assert torch.equal(masks[:, 0], changed)
    areas = masks.flatten(2).sum(dim=2)
    assert (areas <= 1.5 * areas[:, :1]).all()


def test_either_of_two_unequal_eyes_may_be_the_odd_one():
    scenes, broken, changed = plant("unequal irises", 4, generator(16))
    masks = acceptable("unequal irises", scenes, broken)
    columns = torch.arange(64.0)
    middle = 32 + scenes.pose[:, 0]
    for i in range(4):
        centres = {
            bool((mask.float().sum(dim=0) @ columns) / mask.sum() > middle[i]) for mask in masks[i]
        }
        assert centres == {True, False}  # the right eye as planted, or the left one
    assert (acceptable("broken ring", *plant("broken ring", 1, generator(1))[:2])).shape[1] == 1


def test_a_misspelt_word_is_no_word():
    words = {tuple(row.tolist()) for row in spelling()}
    assert len(words) == len(LEXICON)
    bent = spelling().clone()
    for row in bent:
        for place in range(4):
            for letter in range(len(ALPHABET)):
                other = row.clone()
                other[place] = letter
                assert letter == row[place] or tuple(other.tolist()) not in words
