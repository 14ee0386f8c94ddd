"""The phase-split step against plain back-propagation through the whole chain, to the bit."""

import functools

import pytest
import torch
from peft.tuners.lora import Linear

from base_models.flux import Flux
from base_models.sample import around, decode, sample
from core.errors import UserError
from tests import chain
from tests.chain import equal, score, with_adapters
from tests.tiny import SIZE, tiny_flux
from treat.lora import LeanLinear, add_lora, lora_parameters
from treat.offline import LATENTS
from treat.step import (
    Chain,
    draw,
    latent_gradient,
    replay,
    scaled_input,
    without_gradient,
)
from treat.terms import offline_term

STEPS = 4
bf16 = functools.partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=False)
cached_bf16 = functools.partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=True)
fp32 = functools.partial(torch.autocast, "cpu", enabled=False)
PRECISIONS = {"fp32": fp32, "bf16": bf16}


def model_with_adapters() -> Flux:
    return with_adapters(tiny_flux())


def inputs(model):
    return chain.inputs(model, STEPS, SIZE)


def split(model, last, gamma=1.0, precision=fp32, **options):
    """`last` a number of steps, or their numbers."""
    return chain.split(model, inputs(model), numbers(last), gamma, precision, **options)


def plain(model, last, gamma=1.0, precision=fp32):
    return chain.plain(model, inputs(model), numbers(last), gamma, precision)


def numbers(last):
    return range(STEPS - last, STEPS) if isinstance(last, int) else last


@pytest.mark.parametrize("recompute", [True, False])
def test_so_it_is_with_a_base_in_bf16(recompute):
    model = tiny_flux()
    for module in (model.network, *model._text_encoders()):
        module.to(torch.bfloat16)
    with_adapters(model)
    reference = plain(model, 2)
    assert equal(split(model, 2, recompute=recompute), reference)
    assert {gradient.dtype for gradient in reference} == {torch.float32}
    assert not equal(plain(model, 3), reference)


def test_the_steps_of_a_drawing_cast_the_adapters_once(monkeypatch):
    model, kept, cast = model_with_adapters(), [], LeanLinear._cast
    monkeypatch.setattr(
        LeanLinear, "_cast", lambda s, *a: kept.append(bool(s.casts)) or cast(s, *a)
    )
    noise, schedule, text = inputs(model)
    chain = Chain(model, schedule, text, precision=bf16)
    layers = [one for one in model.network.modules() if isinstance(one, LeanLinear)]
    draw(chain, noise, (STEPS - 1,))
    assert kept == [False] * len(layers) + [True] * (STEPS - 1) * len(layers)
    assert all(one.casts is None for one in layers)
    monkeypatch.setattr(model, "step", None)
    with pytest.raises(TypeError):
        draw(chain, noise, ())
    assert all(one.casts is None for one in layers)


@pytest.mark.parametrize("options", [{}, {"recompute": False}, {"two_pass": True}], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("last", [1, 2, STEPS])
def test_equal_to_plain_back_propagation_to_the_bit(last, precision, options):
    model = model_with_adapters()
    ours = split(model, last, precision=PRECISIONS[precision], **options)
    reference = plain(model, last, precision=PRECISIONS[precision])
    assert equal(ours, reference)
    assert sum(gradient.abs().sum() for gradient in reference) > 0
    other = plain(model, last % STEPS + 1, precision=PRECISIONS[precision])
    assert not equal(ours, other)  # control: another K gives another gradient


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("learning", [(0,), (1, 3), (0, 1, 3)], ids=str)
def test_steps_between_those_that_learn_pass_the_gradient_on(learning, recompute):
    model = model_with_adapters()
    ours = split(model, learning, recompute=recompute)
    assert equal(ours, plain(model, learning))
    with pytest.raises(UserError, match=r"names \[4\]: the sampler has steps 0 to 3"):
        split(model, (*learning, STEPS))
    assert not equal(ours, plain(model, range(min(learning), STEPS)))  # control: all of them learn
    calls = STEPS + (len(learning) if recompute else 0)
    assert count(model, lambda: split(model, learning, recompute=recompute))[0] == calls


def test_a_network_without_gradient_gives_it_back_even_where_it_fails():
    network = torch.nn.Linear(2, 2)
    with without_gradient(network):
        assert not network(torch.ones(1, 2)).requires_grad
        with pytest.raises(RuntimeError):
            network(torch.ones(1, 3))
    assert torch.is_grad_enabled() and network(torch.ones(1, 2)).requires_grad
    with torch.no_grad(), without_gradient(network):
        network(torch.ones(1, 2))
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("forward", [LeanLinear.forward, Linear.forward])
def test_only_pefts_own_layers_suffer_from_the_weight_cache_of_autocast(forward, monkeypatch):
    """Why it is off: with it, plain back-propagation sums a weight's gradients in bf16."""
    monkeypatch.setattr(LeanLinear, "forward", forward)
    model = model_with_adapters()
    reference = plain(model, STEPS, precision=cached_bf16)
    is_ours = forward is not Linear.forward
    assert equal(split(model, STEPS, precision=bf16), reference) is is_ours


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.7])
def test_discounted_gradient_equals_the_reference(gamma, recompute):
    model = model_with_adapters()
    ours, reference = split(model, 3, gamma, recompute=recompute), plain(model, 3, gamma)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)
    assert not equal(ours, plain(model, 3))


def test_gamma_zero_skips_the_gradient_of_the_input():
    model = model_with_adapters()
    x = torch.zeros(1, 2, requires_grad=True)
    network = torch.nn.Identity()
    with scaled_input(network, 0.0):
        assert not network(x).requires_grad
    with scaled_input(network, 0.5):
        network(x).sum().backward()
    assert torch.equal(x.grad, torch.full((1, 2), 0.5))
    assert not model.network._forward_pre_hooks


def count(model, work):
    """Transformer calls made by `work`: (all, with gradient)."""
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    work()
    handle.remove()
    return len(calls), sum(calls)


@pytest.mark.parametrize("last", [1, 2, STEPS])
def test_grad_enabled_calls_equal_k(last):
    model = model_with_adapters()
    assert count(model, lambda: split(model, last)) == (STEPS + last, last)
    assert count(model, lambda: split(model, last, recompute=False)) == (STEPS, last)
    # Control: the same counter sees every step of a release that forgot to truncate.
    assert count(model, lambda: plain(model, STEPS)) == (STEPS, STEPS)


def test_gradient_reaches_the_adapters_and_nothing_else():
    model = model_with_adapters()
    noise, schedule, text = inputs(model)
    whole = Chain(model, schedule, text)
    latents, tape = draw(whole, noise, (2, 3))
    replay(whole, tape, latent_gradient(whole, latents, score))
    adapters = {id(weights) for weights in lora_parameters(model.network)}
    for module in (model.network, model.vae, *model._text_encoders()):
        for name, weights in module.named_parameters():
            assert (weights.grad is not None) == (id(weights) in adapters), name


@pytest.mark.parametrize("dtype, as_it_is", [(torch.bfloat16, True), (torch.float32, False)])
def test_a_half_precision_decoder_runs_outside_autocast(dtype, as_it_is):
    model = tiny_flux()
    model.vae.to(dtype)
    latents = model.noise([1], SIZE, SIZE)
    with torch.no_grad():
        images = decode(model, latents, bf16)
        assert torch.equal(images, model.decode(latents)) is as_it_is


@pytest.mark.parametrize("dtype, as_it_is", [(torch.bfloat16, True), (torch.float32, False)])
def test_a_half_precision_network_runs_outside_autocast(dtype, as_it_is):
    """Drawn, learnt from and in the offline term: by its own values, and with its adapters'."""
    model = tiny_flux()
    model.network.to(dtype)
    add_lora(model.network, 4, model.lora_targets("attention"), 0)
    seen = []
    model.network.register_forward_pre_hook(
        lambda *_: seen.append(not torch.is_autocast_enabled("cpu"))
    )
    text = {name: rows.to(dtype) for name, rows in model.encode_prompts(["a hand"]).items()}
    schedule, noise = model.schedule(2, SIZE, SIZE), model.noise([1], SIZE, SIZE)
    steps = Chain(model, schedule, text, precision=bf16)
    latents, tape = draw(steps, noise, [1])
    replay(steps, tape, torch.ones_like(latents))
    offline_term(model, {LATENTS: noise, **text}, [3], bf16)
    sample(model, text, [1], steps=2, height=SIZE, width=SIZE, precision=bf16)
    assert seen == [as_it_is] * 6


def test_a_network_that_learns_itself_keeps_autocast():
    model = tiny_flux()
    model.network.requires_grad_(True)
    with around(model.network, bf16):
        assert torch.is_autocast_enabled("cpu")
