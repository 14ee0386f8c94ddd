"""Adapters: seeded, fp32, without effect at first, switched off to the bit."""

from typing import NamedTuple

import pytest
import torch
from peft.tuners.lora import Conv2d, Linear
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from base_models.sample import autocast
from core.errors import UserError
from tests.tiny import SIZE, tiny_flux
from treat.lora import (
    LeanConv2d,
    LeanLinear,
    adapter_off,
    add_lora,
    casts_kept,
    load_lora_state,
    lora_parameters,
    lora_state,
    weights_moved,
)


def treated(seed=0, rank=4):
    model = tiny_flux()
    add_lora(model.network, rank, model.lora_targets("attention+mlp"), seed)
    return model


def velocity(model):
    text, schedule = model.encode_prompts(["a hand"]), model.schedule(2, SIZE, SIZE)
    with torch.no_grad():
        return model.step(model.noise([0], SIZE, SIZE), 0, schedule, text)


def test_no_effect_at_first_and_only_adapters_learn():
    model = treated()
    assert torch.equal(velocity(model), velocity(tiny_flux()))
    names = {n for n, w in model.network.named_parameters() if w.requires_grad}
    assert names and all("lora_" in name for name in names)
    assert len(names) == len(lora_parameters(model.network)) == len(lora_state(model.network))
    assert all(weights.dtype == torch.float32 for weights in lora_parameters(model.network))


def test_the_last_projection_and_the_base_stay():
    assert not any(name.startswith("proj_out") for name in lora_state(treated().network))
    assert any(
        n.startswith("single_transformer_blocks.0.proj_out") for n in lora_state(treated().network)
    )


def test_seeded_whatever_the_global_state():
    torch.manual_seed(1)
    first = lora_state(treated(seed=5).network)
    torch.manual_seed(2)
    second, other = lora_state(treated(seed=5).network), lora_state(treated(seed=6).network)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_masters_are_fp32_on_a_bf16_network():
    model = tiny_flux()
    model.network.to(torch.bfloat16)
    add_lora(model.network, 4, model.lora_targets("attention"), 0)
    assert {w.dtype for w in lora_parameters(model.network)} == {torch.float32}


def test_off_is_the_base_and_on_again_learns():
    model, base = treated(), velocity(tiny_flux())
    for weights in lora_parameters(model.network):
        weights.data += 0.1
    on = velocity(model)
    assert not torch.equal(on, base)
    with adapter_off(model.network):
        assert torch.equal(velocity(model), base)
    assert torch.equal(velocity(model), on)
    assert all(weights.requires_grad for weights in lora_parameters(model.network))


def test_state_round_trip_and_misfit():
    model, other = treated(seed=1), treated(seed=2)
    load_lora_state(other.network, lora_state(model.network))
    ours, theirs = lora_state(model.network), lora_state(other.network)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(UserError, match="do not fit"):
        load_lora_state(treated(rank=2).network, ours)
    with pytest.raises(UserError, match="already"):
        add_lora(model.network, 4, model.lora_targets("attention"), 0)
    with pytest.raises(UserError, match="add_lora first"):
        lora_state(nn.Linear(2, 2))


def test_how_far_the_weights_were_moved():
    network = treated(rank=3).network
    generator = torch.Generator().manual_seed(1)
    before = [w.detach().clone() for w in lora_parameters(network)]
    assert weights_moved(network, []) == 0
    for weights in lora_parameters(network):
        weights.data += torch.randn(weights.shape, generator=generator)
    now = [w.detach().clone() for w in lora_parameters(network)]
    whole = [b @ a for a, b in zip(now[::2], now[1::2], strict=True)]
    expected = torch.stack([product.square().sum() for product in whole]).sum().sqrt().item()
    assert weights_moved(network, []) == pytest.approx(expected, rel=1e-5)
    assert weights_moved(network, before) == pytest.approx(expected, rel=1e-5)  # B was zero
    assert weights_moved(network, now) == pytest.approx(0, abs=1e-3)
    start = [w + torch.randn(w.shape, generator=generator) for w in now]
    parts = zip(whole, start[::2], start[1::2], strict=True)
    apart = sum((product - b @ a).square().sum().item() for product, a, b in parts) ** 0.5
    assert weights_moved(network, start) == pytest.approx(apart, rel=1e-5)


FORWARDS = LeanLinear.forward, Linear.forward


class Found(NamedTuple):
    values: list[torch.Tensor]
    """What the layers give, and the gradients of input and adapters."""
    kept: int
    """Bytes that stay for the way back, weights aside."""


def three_readers(forward, shape, kind):
    """Three layers with adapters read one input, with this `forward`."""
    torch.manual_seed(0)
    network = nn.ModuleDict({name: nn.Linear(shape[-1], 48) for name in "qkv"})
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    add_lora(network.to(dtype), 4, list("qkv"), seed=0)
    for weights in lora_parameters(network):
        weights.data.normal_()
    start = torch.randn(shape, requires_grad=True)
    known = {weights.data_ptr() for weights in network.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with autocast("cpu", "bf16" if kind == "autocast" else "no")():
        x = start.to(dtype) * 1
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = [forward(layer, x) for layer in network.values()]
    sum((one.float() ** 2).sum() for one in out).backward()
    learnt = [start, *lora_parameters(network)]
    return Found(out + [weights.grad for weights in learnt], sum(kept.values()))


@pytest.mark.parametrize("kind", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("shape", [(5, 64), (2, 5, 64), (2, 3, 5, 64)])
def test_lean_layers_give_pefts_values_and_gradients(shape, kind):
    lean, peft = (three_readers(forward, shape, kind) for forward in FORWARDS)
    for ours, theirs in zip(lean.values, peft.values, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        error = (ours - theirs).float().norm() / theirs.float().norm()
        assert error < (1e-6 if kind == "fp32" else 1e-2)


@pytest.mark.parametrize("kind", ["bf16", "autocast"])
def test_lean_layers_keep_one_input_for_all_who_read_it(kind):
    """peft keeps a copy for each; what is kept besides is of the rank's size."""
    lean, peft = (three_readers(forward, (32, 64), kind) for forward in FORWARDS)
    row, shared = 32 * 64 * 2, 3
    assert lean.kept < 2 * row
    assert peft.kept > shared * row


@pytest.mark.parametrize("kind", ["fp32", "bf16", "autocast"])
def test_lean_convolutions_give_pefts_values_and_gradients(kind):
    found = []
    for forward in (LeanConv2d.forward, Conv2d.forward):
        torch.manual_seed(0)
        network = nn.ModuleDict({"conv": nn.Conv2d(8, 6, 3, stride=2, padding=1)})
        add_lora(network.to(torch.float32 if kind == "fp32" else torch.bfloat16), 4, ["conv"], 0)
        for weights in lora_parameters(network):
            weights.data.normal_()
        x = torch.randn(2, 8, 9, 9, requires_grad=True)
        with autocast("cpu", "bf16" if kind == "autocast" else "no")():
            out = forward(network["conv"], x.to(next(network.parameters()).dtype))
        (out.float() ** 2).sum().backward()
        found.append([out, x.grad, *(weights.grad for weights in lora_parameters(network))])
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        error = (ours - theirs).float().norm() / theirs.float().norm()
        assert error < (1e-6 if kind == "fp32" else 1e-2)


class Casts(TorchDispatchMode):
    """How many tensors were cast."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["fp32", "bf16", "autocast"])
def test_passes_without_gradient_cast_adapters_once(kind):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 48))
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    add_lora(layer.to(dtype), 4, ["0"], seed=0)
    weights, x = lora_parameters(layer), torch.randn(5, 64).to(dtype)
    weights[1].data.normal_()

    def passed():
        with autocast("cpu", "bf16" if kind == "autocast" else "no")(), Casts() as casts:
            return layer(x), casts.number

    def learnt():
        for one in weights:
            one.grad = None
        out, casts = passed()
        (out.float() ** 2).sum().backward()
        return out.detach(), *(one.grad for one in weights), casts

    with torch.no_grad():
        plain, each = passed()
    alone = learnt()
    with casts_kept(layer):
        with torch.no_grad():
            (first, begun), (second, later) = passed(), passed()
        assert layer[0].casts[1].is_contiguous()  # B, turned
        beside = learnt()
        with torch.no_grad():
            (third, last) = passed()
    assert all(torch.equal(plain, one) for one in (first, second, third))
    assert begun == each and later == last == each - (0 if kind == "fp32" else 2)
    assert all(map(torch.equal, alone[:3], beside[:3])) and alone[3] == beside[3]
    weights[1].data += 1
    with torch.no_grad():
        assert not torch.equal(passed()[0], plain)  # nothing stays behind
        with casts_kept(layer):
            assert not torch.equal(passed()[0], plain)


def test_lean_layers_leave_to_peft_what_is_switched_off(monkeypatch):
    model, called = treated(), []
    monkeypatch.setattr(Linear, "forward", lambda self, x: called.append(x) or self.base_layer(x))
    velocity(model)
    assert not called
    with adapter_off(model.network):
        velocity(model)
    assert called
