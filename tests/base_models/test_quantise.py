"""Frozen weights in few bits: near to what they were, adapters untouched, bytes as counted."""

import pytest
import torch
from torch import nn

from base_models import quantise as quantisation
from base_models.load import load_base
from base_models.quantise import Outline, check_quantisation, outline_quantised, quantise
from core.errors import UserError
from tests.base_models.families import CASES
from treat.lora import add_lora, lora_parameters

pytest.importorskip("torchao")  # `make test` installs both
pytest.importorskip("bitsandbytes")

KINDS = {"int8": 0.01, "fp8": 0.04, "nf4": 0.12}
"""The error of a product of random weights, at most, as a share of its norm."""


class Net(nn.Module):
    """One layer before the blocks; in the block two, of which nf4 can take the first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Linear(128, 128)
        self.blocks = nn.ModuleList([nn.ModuleDict({"wide": nn.Linear(128, 160)})])
        self.blocks[0]["odd"] = nn.Linear(160, 8, bias=False)

    def forward(self, x):
        return self.blocks[0]["odd"](self.blocks[0]["wide"](self.before(x)))


def treated(kind):
    network = add_lora(Net(), 2, ["wide"], 0)
    for weights in lora_parameters(network):
        weights.data += 0.01
    quantise(network, kind)
    return network.train(False).to("cpu")


def stored(layer):
    """Bytes of a quantised layer's weight, by what the library keeps."""
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        state = weight.quant_state
        inner = [weight, state.absmax, state.code, state.offset, state.state2.absmax]
        inner.append(state.state2.code)
    else:
        names, _ = weight.__tensor_flatten__()
        inner = [getattr(weight, name) for name in names]
    return sum(tensor.numel() * tensor.element_size() for tensor in inner)


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_gradients_stay_near(kind):
    whole, small = treated("no"), treated(kind)
    x = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = {}
    for name, network in (("whole", whole), ("small", small)):
        with torch.no_grad():
            network(x)  # a look first: what is packed for looking must still learn
        y = network(x)
        y.square().sum().backward()
        gradients = [w.grad.flatten() for w in lora_parameters(network)]
        found[name] = y.detach(), x.grad.flatten(), torch.cat(gradients)
        x.grad = None
        frozen = [w for w in network.parameters() if not w.requires_grad]
        assert all(w.grad is None for w in frozen)
    y, near = found["whole"][0], found["small"][0]
    assert 0 < (near - y).norm() / y.norm() < KINDS[kind]
    for mine, theirs in zip(found["small"][1:], found["whole"][1:], strict=True):
        assert torch.cosine_similarity(mine, theirs, 0) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_frozen_in_the_blocks_shrinks(kind):
    network, whole = treated(kind), treated("no")
    wide, odd = network.blocks[0]["wide"], network.blocks[0]["odd"]
    assert torch.equal(network.before.weight, whole.before.weight)
    for mine, theirs in zip(lora_parameters(network), lora_parameters(whole), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs)
    assert (type(odd.weight) is nn.Parameter) == (kind == "nf4")  # 160 is no multiple of 64
    taken = [(wide.base_layer, 128 * 160)] + ([(odd, 160 * 8)] if kind != "nf4" else [])
    for layer, numbers in taken:
        assert stored(layer) < numbers * (0.6 if kind == "nf4" else 1.7)


@pytest.mark.parametrize("kind", KINDS)
def test_an_outline_holds_as_many_bytes(kind):
    real = treated(kind).blocks[0]["wide"].base_layer
    network = add_lora(Net(), 2, ["wide"], 0)
    outline_quantised(network, kind)
    outline = network.blocks[0]["wide"].base_layer
    assert isinstance(outline, Outline)
    assert outline.packed.numel() == stored(real)


@pytest.mark.parametrize("case", ["flux", "sdxl", "sd", "sd3", "kolors"])
def test_every_family_draws_with_small_weights(case, tmp_path):
    CASES[case].pipeline().save_pretrained(tmp_path)
    steps = {}
    for bits in ("no", "int8"):
        model = load_base(str(tmp_path))
        add_lora(model.network, 2, model.lora_targets("attention"), 0)
        quantise(model.network, bits)
        model.to("cpu")
        size = 16 * model.cells
        schedule, text = model.schedule(2, size, size), model.encode_prompts(["a hand"])
        steps[bits] = model.step(model.noise([0], size, size), 0, schedule, text)
    mine, whole = (step.detach().flatten() for step in (steps["int8"], steps["no"]))
    assert not torch.equal(mine, whole)  # guidance multiplies what differs
    assert torch.cosine_similarity(mine, whole, 0) > 0.98


def test_a_missing_library_is_named(monkeypatch):
    check_quantisation("no")
    monkeypatch.setattr(quantisation, "find_spec", lambda name: None)
    for kind, library in quantisation.LIBRARIES.items():
        with pytest.raises(UserError, match=f"{kind} weights need {library}: pip install"):
            quantise(Net(), kind)
    check_quantisation("no")
