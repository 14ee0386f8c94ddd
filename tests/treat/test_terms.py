"""The offline term held to the base: nothing at the base, the distance of predictions beyond."""

from contextlib import nullcontext

import pytest
import torch

from base_models import flow
from tests.base_models.families import CASES
from tests.chain import gradients, inputs, with_adapters
from tests.tiny import SIZE
from tests.treat.setting import build, config, losses
from treat import train
from treat.lora import adapter_off, lora_parameters
from treat.offline import LATENTS
from treat.terms import offline_term


def opened(name):
    model = with_adapters(CASES[name].model())
    clean, _, text = inputs(model, 2, SIZE)
    return model, {LATENTS: clean, **text}


def held(model, rows):
    return offline_term(model, rows, [3, 4], nullcontext, "base")


@pytest.mark.parametrize("name", CASES)
def test_the_base_itself_is_at_no_distance_and_the_adapters_are(name):
    model, rows = opened(name)
    loss = held(model, rows)
    loss.backward()
    assert loss > 0 and all(gradient.abs().sum() > 0 for gradient in gradients(model))
    for weights in lora_parameters(model.network)[1::2]:
        weights.data.zero_()
    assert held(model, rows) == 0
    assert offline_term(model, rows, [3, 4], nullcontext) > 0  # control: real images are


def test_it_is_the_distance_of_the_velocities():
    model, rows = opened("flux")
    clean = rows.pop(LATENTS)
    mu = model._mu(clean.shape[-2] * clean.shape[-1] // 4)
    sigma, eps = flow._draw_times(model.scheduler, mu, clean, [3, 4])
    given = (1 - sigma) * clean + sigma * eps, sigma.flatten() * 1000
    with torch.no_grad():
        ours = model._velocity(*given, conditioning=rows)
        with adapter_off(model.network):
            base = model._velocity(*given, conditioning=rows)
    expected = (ours - base).square().mean()
    torch.testing.assert_close(held(model, {LATENTS: clean, **rows}), expected)
    other = offline_term(model, {LATENTS: clean, **rows}, [3, 5], nullcontext, "base")
    assert (other - expected).abs() > 1e-4 * expected  # control: the noise matters


def test_a_treatment_begins_at_no_distance(tmp_path):
    world = build(tmp_path / "world")
    train.main(config(world, tmp_path / "run", steps=2, offline_target="base"))
    found = losses(tmp_path / "run")
    assert found[1]["offline"] == 0 < found[2]["offline"]
