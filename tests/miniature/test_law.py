"""The law: prompts name scenes one to one, colours that touch differ, scenes differ visibly."""

from itertools import combinations

import pytest
import torch

from core.seeds import generator
from miniature.law import (
    CATEGORIES,
    GROUND,
    LEXICON,
    SAID,
    all_prompts,
    draw,
    draw_off_grid,
    prompts,
)
from miniature.paint import render

TOUCHING = {
    "hand": [("skin", "sky"), ("skin", "ground")],
    "face": [
        *(("hair", "sky"), ("hair", "ground"), ("hair", "skin"), ("skin", "sky")),
        *(("skin", "ground"), ("eye", "skin"), ("iris", "eye"), ("lips", "skin")),
    ],
    "bicycle": [("tyre", "sky"), ("tyre", "ground"), ("frame", "sky"), ("frame", "ground")],
    "sign": [("board", "sky"), ("pole", "ground"), ("ink", "board")],
    "scenery": [("sun", "sky"), ("trunk", "ground"), ("leaf", "sky"), ("leaf", "ground")],
}
"""Layers that share a border in some image."""


def close(category: str, least: float = 0.35) -> dict[tuple[str, str, str, str], float]:
    """Pairs of colours that touch and differ by less than `least` RGB."""
    law, found = CATEGORIES[category], {}
    for a, b in [*TOUCHING[category], ("sky", "ground")]:
        for name, colour in law.layers[a].items():
            for other, beside in law.layers[b].items():
                distance = float((torch.tensor(colour) - torch.tensor(beside)).norm())
                if distance < least:
                    found[a, b, name, other] = distance
    return found


@pytest.mark.parametrize("category", CATEGORIES)
def test_colours_that_touch_differ(category: str):
    assert close(category) == {}


def test_the_palette_check_sees_a_close_pair(monkeypatch):
    monkeypatch.setitem(GROUND, "sand", (0.76, 0.52, 0.40))  # as tan skin
    assert ("skin", "ground", "tan", "sand") in close("hand")


@pytest.mark.parametrize("category", CATEGORIES)
def test_draws_stay_within_the_law(category: str):
    law = CATEGORIES[category]
    low, high = law.box
    for scenes in (
        draw(category, 50, generator(1)),
        draw_off_grid(category, 50, generator(1), 0.05),
    ):
        assert set(scenes.factors) == set(law.factors)
        assert all(int(v.max()) < len(law.factors[name]) for name, v in scenes.factors.items())
        assert (scenes.pose >= low).all() and (scenes.pose <= high).all()
        assert scenes.tint.abs().max() <= 0.05


def test_draws_follow_the_seed():
    first, again, other = (draw("hand", 9, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.pose, again.pose) and not torch.equal(first.pose, other.pose)


def test_prompts_are_unique_and_say_what_is_stated():
    table = all_prompts()
    sizes = {
        name: int(torch.tensor([len(law.factors[f]) for f in law.stated]).prod())
        for name, law in CATEGORIES.items()
    }
    assert len(table) == sum(sizes.values())  # a prompt that two scenes share would be lost
    for said, (_, stated) in table.items():
        assert all(SAID.get(value, value.lower()) in said for value in stated.values())
    for name in CATEGORIES:
        scenes = draw(name, 20, generator(3))
        for i, said in enumerate(prompts(scenes)):
            stated = table[said][1]
            assert all(scenes.value(i, factor) == value for factor, value in stated.items())


def test_words_differ_in_two_letters():
    assert min(letters_apart(a, b) for a, b in combinations(LEXICON, 2)) >= 2


def letters_apart(a: str, b: str) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("category", CATEGORIES)
def test_one_factor_changes_two_dozen_pixels(category: str):
    """All pairs of values of every factor, at the middle pose."""
    law = CATEGORIES[category]
    base = draw(category, 1, generator(5), jitter=0)
    for name, values in law.factors.items():
        many = base[torch.zeros(len(values), dtype=torch.long)]
        many.factors[name] = torch.arange(len(values))
        images = render(many)
        for i, j in combinations(range(len(values)), 2):
            changed = int(((images[i] - images[j]).norm(dim=0) > 0.25).sum())
            assert changed >= 24, f"{name}: {values[i]} and {values[j]} differ in {changed} pixels"
