"""Blocks that are computed again: the same gradient to the bit, with less in memory."""

import functools

import pytest
import torch

from base_models.checkpointing import recompute_blocks
from core.counting import Tally
from tests.base_models.families import CASES
from tests.chain import equal, inputs, split, with_adapters
from tests.tiny import SIZE

fp32 = functools.partial(torch.autocast, "cpu", enabled=False)
bf16 = functools.partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=False)


def gradient(case, precision, network, decoder):
    """Of the last of three steps; with the most bytes that lived meanwhile."""
    model = with_adapters(CASES[case].model())
    recompute_blocks(model, network, decoder)
    given = inputs(model, 3, SIZE)
    costs = {}
    with Tally() as tally, tally.work(costs, "update"):
        found = split(model, given, [2], 1.0, precision)
    return found, costs["update"].peak


@pytest.mark.parametrize("precision", [fp32, bf16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", ["flux", "sdxl", "sd", "kolors"])
def test_the_gradient_is_the_same_to_the_bit(case, precision):
    kept, all_in_memory = gradient(case, precision, False, False)
    for parts in ((True, False), (False, True), (True, True)):
        found, memory = gradient(case, precision, *parts)
        assert equal(found, kept), parts
        assert memory < all_in_memory, parts
