"""Adapters and their weights in; one adapter of the weighted sum out, its ranks concatenated.

W + sum_k w_k B_k A_k = W + [w_1 B_1 ... w_n B_n] [A_1; ...; A_n]: one LoRA says the same exactly,
at the sum of the ranks. A part that lacks a module has zeros there, so that all ranks are equal.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import UserError
from treat.adapter import Adapter, in_full, read_adapter

KEPT = ("base", "width", "height")
"""Of the first run's settings, what holds of the sum as well."""


class Part(NamedTuple):
    """One adapter of the sum."""

    adapter: Adapter
    weight: float
    path: str
    """As it was named; for messages, never written."""


def read_parts(run: Path, step: str, scale: float, also: Sequence[str]) -> list[Part]:
    """The run's adapter at `scale`, and PATH=WEIGHT each; all files are read, nothing computed."""
    given = [weighted(word) for word in also]  # mistakes of writing come first
    parts = [Part(read_adapter(run, step), scale, str(run))]
    for path, weight in given:
        parts.append(Part(read_adapter(Path(path), "last" if step == "last" else "best"),
                          weight, path))  # fmt: skip
    check_sides(parts)
    return parts


def check_bases(parts: Sequence[Part]) -> None:
    """Raise `UserError` where two runs name different bases; a plain file names none."""
    named = {(Path(part.path), str(part.adapter.run["base"])) for part in parts
             if part.adapter.run.get("base")}  # fmt: skip
    known = {Path(base).resolve() if Path(base).exists() else base: path for path, base in named}
    if len(known) > 1:
        one, other = sorted(map(str, known.values()))[:2]
        raise UserError(
            f"{one} and {other} were trained on different bases, whose changes do not add up: "
            "if both are the same model under two names, say which with --base."
        )


def weighted(word: str) -> tuple[str, float]:
    """PATH=WEIGHT, or PATH alone for 1; `UserError` for a weight that is no finite number."""
    path, equals, text = word.rpartition("=")
    if not equals:
        return word, 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not path or not math.isfinite(weight):
        raise UserError(f"'{word}' is not PATH=WEIGHT: write it like runs/other=0.5.")
    return path, weight


def combined(parts: Sequence[Part]) -> Adapter:
    """One adapter of the sum; a single one at weight 1 comes back untouched."""
    first, weight, _ = parts[0]
    if len(parts) == 1:
        tensors = scaled(first, weight)
        return first if weight == 1 else Adapter(tensors, first.step, first.run)
    modules = sorted({name for part in parts for name in part.adapter.modules})
    states = [scaled(part.adapter, part.weight) for part in parts]
    tensors = {}
    for name in modules:
        a, b = joined(name, parts, states)
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, b
    return Adapter(tensors, None, {key: first.run[key] for key in KEPT if key in first.run})


def scaled(adapter: Adapter, weight: float) -> dict[str, Tensor]:
    """In float32, the weight within B."""
    return {
        name: tensor * weight if name.endswith("lora_B.weight") else tensor
        for name, tensor in in_full(adapter).items()
    }


def joined(
    name: str, parts: Sequence[Part], states: Sequence[dict[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """A and B of one module over all parts, at the sum of their ranks."""
    pairs = [
        (state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"])
        if f"{name}.lora_A.weight" in state
        else None
        for state in states
    ]
    wide, tall = next((a.shape[1], b.shape[0]) for a, b in filter(None, pairs))
    ranks = [part.adapter.rank for part in parts]
    a, b = torch.zeros(sum(ranks), wide), torch.zeros(tall, sum(ranks))
    start = 0
    for pair, rank in zip(pairs, ranks, strict=True):
        if pair is not None:
            own = pair[0].shape[0]  # a foreign file's ranks may differ from module to module
            a[start : start + own], b[:, start : start + own] = pair
        start += rank
    return a, b


def check_sides(parts: Sequence[Part]) -> None:
    """Raise `UserError` unless every module has the same sides in every part."""
    sides: dict[str, tuple[int, int]] = {}
    for part in parts:
        tensors = part.adapter.tensors
        for name in part.adapter.modules:
            own = (
                tensors[f"{name}.lora_B.weight"].shape[0],
                tensors[f"{name}.lora_A.weight"].shape[1],
            )
            if sides.setdefault(name, own) != own:
                raise UserError(
                    f"'{name}' has other sides in {part.path} than in {parts[0].path}: combine "
                    "adapters of one base."
                )
