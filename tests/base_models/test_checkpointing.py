"""Blocks that are computed again: the same gradient to the bit, with less in memory."""

import functools

import pytest
import torch

from base_models.checkpointing import recompute_blocks
from core.counting import Tally
from tests.base_models.families import CASES
from tests.chain import equal, gradients, inputs, score, with_adapters
from tests.tiny import SIZE
from treat.step import Chain, draw, latent_gradient, replay

fp32 = functools.partial(torch.autocast, "cpu", enabled=False)
BLOCKS = ("flux", "sdxl", "sd", "sd3", "kolors")
bf16 = functools.partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=False)


def gradient(case, precision, network, decoder):
    """Of the last of three steps; with the most bytes that lived in the two phases."""
    model = with_adapters(CASES[case].model())
    recompute_blocks(model, network, decoder)
    noise, schedule, text = inputs(model, 3, SIZE)
    chain = Chain(model, schedule, text, 1.0, precision)
    latents, tape = draw(chain, noise, [2])
    costs = {}
    with Tally() as tally:
        with tally.work(costs, "decoder"):
            pull = latent_gradient(chain, latents, score)
        with tally.work(costs, "network"):
            replay(chain, tape, pull)
    return gradients(model), {name: cost.peak for name, cost in costs.items()}


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        *(pytest.param(case, fp32, id=f"{case}-fp32") for case in BLOCKS),
        # The others have the same blocks, and bf16 is slow on a CPU without units for it.
        *(pytest.param(case, bf16, id=f"{case}-bf16") for case in ("flux", "sdxl")),
        *(
            pytest.param(case, bf16, id=f"{case}-bf16", marks=pytest.mark.slow)
            for case in ("sd", "sd3", "kolors")
        ),
    ],
)
def test_the_gradient_is_the_same_to_the_bit(case, precision):
    kept, before = gradient(case, precision, False, False)
    for part in ("network", "decoder"):
        found, after = gradient(case, precision, part == "network", part == "decoder")
        assert equal(found, kept), part
        assert after[part] < before[part], part
