"""The split of the prompts: disjoint, complete, every stated value in every part; even draws."""

from collections import Counter
from itertools import combinations

import pytest

from core.errors import UserError
from miniature.law import CATEGORIES, all_prompts
from miniature.prompts import balanced, category_of, cover, split, stated


def test_parts_share_no_prompt_and_hold_all():
    parts = split()
    assert all(not set(parts[a]) & set(parts[b]) for a, b in combinations(parts, 2))
    assert sorted(sum(parts.values(), [])) == sorted(all_prompts())
    shares = {part: len(own) / len(all_prompts()) for part, own in parts.items()}
    assert shares == pytest.approx({"train": 0.7, "search": 0.1, "held_out": 0.2}, abs=0.04)


@pytest.mark.parametrize("part", ["train", "search", "held_out"])
def test_every_part_names_every_stated_value(part):
    for category, law in CATEGORIES.items():
        own = [stated(prompt) for prompt in split()[part] if category_of(prompt) == category]
        for factor in law.stated:
            assert {said[factor] for said in own} == set(law.factors[factor])


def test_covering_is_not_for_free():
    """The control: the first prompts by rank alone would leave values out."""
    ranked = [prompt for prompt, (name, _) in all_prompts().items() if name == "sign"]
    words = {stated(prompt)["word"] for prompt in ranked[:20]}
    assert len(words) < 16 and len({stated(p)["word"] for p in cover(ranked, 20)}) == 16


def test_draws_are_even_and_depend_on_the_seed_alone():
    prompts = split()["train"]
    chosen = balanced(prompts, 100, seed=1)
    assert set(Counter(map(category_of, chosen)).values()) == {20}
    assert balanced(prompts, 40, seed=1) == chosen[:40] and balanced(prompts, 100, 2) != chosen
    hands = [prompt for prompt in chosen if category_of(prompt) == "hand"]
    assert len(set(hands[:11])) == 11  # all eleven before one comes again


def test_draws_from_one_category_and_from_strangers():
    sign = [prompt for prompt in split()["search"] if category_of(prompt) == "sign"]
    assert sorted(balanced(sign, 16, 0)) == sorted(sign)
    with pytest.raises(UserError, match="no prompt 'a cat'"):
        balanced(["a cat"], 1, 0)
    with pytest.raises(UserError, match="at least one"):
        balanced([], 1, 0)
