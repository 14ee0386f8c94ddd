"""A frozen network in, the same network with LoRA adapters out (peft, rank = alpha, fp32).

Legend: m rows of activations, i and o features in and out, r rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d, Linear, LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional as F

from core import seeds as seeding
from core.errors import UserError

ADAPTER = "default"


class LeanLinear(Linear):
    """peft's layer, W x + B A x, in fewer passes over the activations.

    peft copies an input in half precision to fp32 (under autocast also back), keeps a copy for the
    gradient, and multiplies by a scale that is always 1 here. The second product adds to what the
    frozen layer gave. B is turned beforehand: the gradient of a turned B is several times faster on
    a CPU. Where B is 0 the values are the frozen layer's but for rounding.
    """

    casts: tuple[Tensor, ...] | None = None
    """Both halves as a pass without gradient last cast them; `casts_kept` lets them stay."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        dtype = _computed_in(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # m i
        out = self.base_layer(rows)  # m o
        a, turned = self._cast(dtype, out.dtype)  # r i, r o
        low = F.linear(rows, a).to(out.dtype)  # m r
        return out.addmm_(low, turned).view(*x.shape[:-1], out.shape[-1])

    def _cast(self, dtype: torch.dtype, out: torch.dtype) -> tuple[Tensor, ...]:
        free = torch.is_grad_enabled() or torch.compiler.is_compiling()
        kept = None if free else self.casts
        if kept:
            return kept
        a, b = _pair(self)
        turned = b.t().to(out, memory_format=torch.contiguous_format)
        found = a.to(dtype), turned.contiguous()  # where the dtype stays, `to` copies nothing
        if kept is not None:
            self.casts = found
        return found


class LeanConv2d(Conv2d):
    """The same for convolutions, whose halves are convolutions too: in one precision."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        dtype, (a, b) = _computed_in(x), _pair(self)
        down: Any = self.lora_A[ADAPTER]
        up: Any = self.lora_B[ADAPTER]
        shape = down.stride, down.padding, down.dilation, down.groups
        low = F.conv2d(x.to(dtype), a.to(dtype), None, *shape)
        return self.base_layer(x) + F.conv2d(low, b.to(dtype), groups=up.groups)


def _computed_in(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def add_lora(network: nn.Module, rank: int, targets: list[str], seed: int) -> nn.Module:
    """Put adapters on the modules whose names end in `targets`; all else is frozen.

    A: Kaiming-uniform as in peft, drawn from `seed` and the module's place; B: zeros, so that the
    network is unchanged at first (in half precision but for rounding). The masters are fp32
    whatever the network's precision.
    """
    if any(isinstance(module, LoraLayer) for module in network.modules()):
        raise UserError("This network carries adapters already: load the base again.")
    network.requires_grad_(False)
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0)
    settings._register_custom_module({nn.Linear: LeanLinear, nn.Conv2d: LeanConv2d})
    inject_adapter_in_model(settings, network, ADAPTER)
    for index, layer in enumerate(_layers(network)):
        a, b = _pair(layer)
        a.data = (
            torch.empty(a.shape)
            .uniform_(
                # Kaiming with a = sqrt(5): bound 1 / sqrt(fan in).
                -(a.shape[1] ** -0.5),
                a.shape[1] ** -0.5,
                generator=seeding.generator(seed, index),
            )
            .to(a.device)
        )
        b.data = torch.zeros(b.shape, device=b.device)
    return network


def lora_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Every A and B, in the order of the network's modules."""
    return [weights for layer in _layers(network) for weights in _pair(layer)]


@torch.no_grad()
def weights_moved(network: nn.Module, start: Sequence[Tensor]) -> float:
    """Frobenius norm of what the adapters add to the weights, less what `start` added.

    `start`: all A and B as they were, in the order of `lora_parameters`; empty where they added
    nothing. Of the products only those of r x r are formed: |BA|^2 = tr(B'B AA').
    """
    here = lora_parameters(network)
    total = torch.zeros((), dtype=torch.double, device=here[0].device)
    for i in range(0, len(here), 2):
        (a, b), was = (w.double() for w in here[i : i + 2]), start[i : i + 2]
        if was:
            a_was, b_was = (w.to(a) for w in was)
            a, b = torch.cat([a, a_was]), torch.cat([b, -b_was], dim=1)
        total += ((b.T @ b) * (a @ a.T)).sum()
    return total.clamp_min(0).sqrt().item()


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the adapters by peft's names (`….lora_A.weight`); `UserError` where none are."""
    if not _layers(network):
        raise UserError("the network has no adapters: call add_lora first.")
    state = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def load_lora_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `lora_state` back; raise `UserError` unless every tensor finds its place."""
    check_lora_state(network, state)
    set_peft_model_state_dict(network, dict(state), adapter_name=ADAPTER)


def check_lora_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless the adapters of a network have these names and shapes."""
    here = {name: tensor.shape for name, tensor in lora_state(network).items()}
    if here != {name: tensor.shape for name, tensor in state.items()}:
        raise UserError(
            "These adapters do not fit the base: use the base, rank and targets they came from."
        )


@contextmanager
def adapter_off(network: nn.Module) -> Iterator[None]:
    """Within, the network is the untreated base."""
    layers = _layers(network)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def casts_kept(network: nn.Module) -> Iterator[None]:
    """Within, neither adapters nor precision may change: passes without gradient cast each adapter
    of a linear layer once. Compiled blocks cast for themselves."""
    layers = [layer for layer in _layers(network) if isinstance(layer, LeanLinear)]
    for layer in layers:
        layer.casts = ()
    try:
        yield
    finally:
        for layer in layers:
            layer.casts = None


def _layers(network: nn.Module) -> list[LoraLayer]:
    return [module for module in network.modules() if isinstance(module, LoraLayer)]


def _pair(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
