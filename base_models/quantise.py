"""A network's frozen weights in 8 or 4 bits; its adapters stay in fp32.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): what the adapters stand beside is only read, so it
may be small. Weights are computed back for each product; gradient passes them and goes no further.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base_models.names import Quantisation
from core.errors import UserError

LIBRARIES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
NF4_BLOCK, NF4_OUTER = 64, 256
"""Weights that share a scale; scales, themselves in 8 bits, that share one of 4 bytes."""


def check_quantisation(kind: Quantisation) -> None:
    """Raise `UserError` where the library of that kind is missing."""
    library = LIBRARIES.get(kind)
    if library is not None and find_spec(library) is None:
        raise UserError(f"{kind} weights need {library}: pip install {library}.")


def quantise(network: nn.Module, kind: Quantisation) -> None:
    """Quantise the frozen linear layers within the blocks of a network, in place.

    `int8` and `fp8` (e4m3) have one scale for each output (torchao), `nf4` one for 64 weights
    (bitsandbytes, which quantises as the network comes to its device). What stands before and after
    the blocks is small and stays. Adapters must be there already: peft then finds plain layers.
    """
    check_quantisation(kind)
    if kind != "no":
        _replace(network, kind, _to_nf4 if kind == "nf4" else _with_torchao(kind))


def outline_quantised(network: nn.Module, kind: Quantisation) -> None:
    """The same without weights and without the libraries; for counting."""
    if kind != "no":
        _replace(network, kind, partial(Outline, kind=kind))


def _replace(
    network: nn.Module, kind: Quantisation, change: Callable[[nn.Linear], nn.Module]
) -> None:
    for name, module in list(network.named_modules()):
        if "block" not in name.split(".")[0]:
            continue
        for place, layer in list(module.named_children()):
            if type(layer) is not nn.Linear or layer.weight.requires_grad:
                continue
            # On a CPU bitsandbytes reads rows back wrongly that are no whole number of blocks.
            if kind != "nf4" or layer.in_features % NF4_BLOCK == 0:
                setattr(module, place, change(layer))


def _with_torchao(kind: Quantisation) -> Callable[[nn.Linear], nn.Module]:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    chosen = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]()

    def change(layer: nn.Linear) -> nn.Module:
        quantize_(layer, chosen)
        return layer

    return change


def _to_nf4(layer: nn.Linear) -> nn.Module:
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    weights: Any = Params4bit  # its own constructor is hidden from type checkers by Tensor's
    small: Any = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    small.weight = weights(layer.weight.data, False, quant_type="nf4", blocksize=NF4_BLOCK)
    small.bias = layer.bias
    small.support_avx512bf16_for_cpu = False  # its layout for such CPUs passes no gradient
    return small


class Outline(nn.Module):
    """A quantised layer as a counter sees it: what it holds, and what a product needs meanwhile."""

    packed: Tensor

    def __init__(self, layer: nn.Linear, kind: Quantisation):
        super().__init__()
        self.shape, self.dtype = layer.weight.shape, layer.weight.dtype
        held = packed_bytes(kind, *self.shape)
        self.register_buffer("packed", torch.empty(held, dtype=torch.uint8, device="meta"))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x.to(self.dtype), self.shape, self.bias)  # pyright: ignore


class _Product(torch.autograd.Function):
    """x W^T + b, with a W that exists only during the product, on the way there and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size, bias: Tensor | None) -> Tensor:
        ctx.shape = shape
        return F.linear(x, x.new_empty(shape), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] @ grads[0].new_empty(ctx.shape), None, None


def packed_bytes(kind: Quantisation, outputs: int, inputs: int) -> int:
    """What one layer's weights take, scales included."""
    numbers = outputs * inputs
    if kind == "nf4":
        scales = -(-numbers // NF4_BLOCK)
        tables = 4 * (16 + 256 + 1)  # levels of weights and of scales, and the scales' mean
        return -(-numbers // 2) + scales + 4 * -(-scales // NF4_OUTER) + tables
    return numbers + outputs * (5 if kind == "int8" else 4)  # int8 also has a zero point
