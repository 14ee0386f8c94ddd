"""Every prompt of the world in; three lists that share none out: to learn, search and report on."""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

from core.errors import UserError
from core.order import batch_indices
from core.seeds import mix
from miniature.law import CATEGORIES, all_prompts

Part = Literal["train", "search", "held_out"]
"""Learnt from; recipes are searched on; reported on."""
SHARES: dict[Part, float] = {"held_out": 0.2, "search": 0.1, "train": 0.7}
"""Taken in this order, so that what is reported on never depends on the other two."""
ORDER = 31
"""What a draw is for; see `core.seeds`."""


@cache
def split() -> dict[Part, list[str]]:
    """The three lists, always the same; each names every stated value of every category.

    A part has at least as many prompts of a category as that takes (three of scenery's twelve,
    sixteen words of signs), else its share.
    """
    parts: dict[Part, list[str]] = {part: [] for part in get_args(Part)}
    for category in CATEGORIES:
        left = sorted((p for p, (c, _) in all_prompts().items() if c == category), key=_rank)
        wanted = {part: round(share * len(left)) for part, share in SHARES.items()}
        for part in ("held_out", "search"):
            chosen = cover(left, wanted[part])
            parts[part] += chosen
            left = [prompt for prompt in left if prompt not in chosen]
        parts["train"] += left
    return parts


def cover(ranked: Sequence[str], count: int) -> list[str]:
    """Of ranked prompts the first that together name every stated value, then `count` in all."""
    chosen: list[str] = []
    missing = {value for prompt in ranked for value in _values(prompt)}
    while missing:
        best = max(ranked, key=lambda prompt: len(missing & _values(prompt)))
        chosen.append(best)
        missing -= _values(best)
    chosen += [p for p in ranked if p not in chosen][: max(0, count - len(chosen))]
    return chosen


def balanced(prompts: Sequence[str], n: int, seed: int) -> list[str]:
    """n prompts: the categories in turn, each going through its own in an endless shuffle.

    Prompt i depends on the list, i and the seed alone. Raises `UserError` for strange prompts.
    """
    own: dict[str, list[str]] = {}
    for prompt in prompts:
        own.setdefault(category_of(prompt), []).append(prompt)
    if not own:
        raise UserError("no prompt was given: name at least one.")
    turns = [(number, own[name]) for number, name in enumerate(CATEGORIES) if name in own]
    chosen = []
    for i in range(n):
        number, mine = turns[i % len(turns)]
        place = batch_indices(len(mine), 1, mix(seed, ORDER, number), i // len(turns))[0]
        chosen.append(mine[place])
    return chosen


def category_of(prompt: str) -> str:
    """The category that a prompt of the world names."""
    if prompt not in all_prompts():
        raise UserError(
            f"The miniature world has no prompt {prompt!r}: use those of "
            "`diffdoctor miniature render` (they are in its prompts.jsonl)."
        )
    return all_prompts()[prompt][0]


def stated(prompt: str) -> dict[str, str]:
    """The factors that a prompt of the world states."""
    category_of(prompt)
    return all_prompts()[prompt][1]


def _values(prompt: str) -> set[tuple[str, str]]:
    return set(all_prompts()[prompt][1].items())


def _rank(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
