"""Which of the T sampling steps learn: a rule and a seed in, step numbers out, counted from 0.

`last`: the last K. `tail`: the last k, k drawn from 1 to K, so that a chain is cut at random
(AlignProp, arXiv 2310.03739). `uniform`: K spread evenly, the last among them.
`random`: K drawn among all (DRTune trains a random early one: arXiv 2405.00760).
"""

from collections.abc import Callable

import torch

from core.seeds import generator, mix
from treat.settings import Rule


def choose(rule: Rule | tuple[int, ...], k: int, total: int, seed: int) -> list[int]:
    """Ascending, none twice; only `tail` and `random` read the seed."""
    if not isinstance(rule, str):
        return sorted(rule)
    return RULES[rule](k, total, seed)


def drawn_among(steps: list[int], number: int, seed: int) -> list[int]:
    """So many of the steps, at random, some perhaps twice."""
    return [steps[mix(seed, n) % len(steps)] for n in range(number)]


def _last(k: int, total: int, _seed: int) -> list[int]:
    return list(range(total - k, total))


def _tail(k: int, total: int, seed: int) -> list[int]:
    return _last(1 + int(torch.randint(k, (), generator=generator(seed))), total, seed)


def _uniform(k: int, total: int, _seed: int) -> list[int]:
    return sorted(total - 1 - i * total // k for i in range(k))


def _random(k: int, total: int, seed: int) -> list[int]:
    return sorted(torch.randperm(total, generator=generator(seed))[:k].tolist())


RULES: dict[str, Callable[[int, int, int], list[int]]] = {
    "last": _last,
    "tail": _tail,
    "uniform": _uniform,
    "random": _random,
}
