"""A network and real images in; a Gaussian over its last layer's weights out, and samples of it.

The last-layer Laplace approximation of BayesDiff (Kou et al. 2024, arXiv 2310.11142), diagonal: the
variance of a weight is 1 / (sum of its squared gradients + prior), of the negative log-likelihood
that the training loss is (unit noise on every value of the target).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.contracts import Conditioning, DiffusionModel, Latents
from core.errors import UserError

NAMES = ("conv_out", "proj_out")
"""What UNets and transformers of diffusers call it."""


def last_layer(network: nn.Module) -> nn.Module:
    known = dict(network.named_children())
    found = next((known[name] for name in NAMES if name in known), None)
    if found is None:
        raise UserError("this base's network has no last layer that BayesDiff knows: use another.")
    return found


@final
class Laplace:
    """Deviations of the weights of one layer, by their names."""

    def __init__(self, layer: nn.Module, deviations: Mapping[str, Tensor]) -> None:
        self.layer, self.deviations = layer, dict(deviations)

    @contextmanager
    def sampled(self, generator: torch.Generator) -> Iterator[None]:
        """Within, the layer answers with weights drawn around its own."""
        moved = {
            name: (torch.randn(size.shape, generator=generator)).to(size) * size
            for name, size in self.deviations.items()
        }

        def answer(layer: nn.Module, given: tuple, out: Tensor) -> Tensor:
            return out + functional_call(layer, moved, given)  # both are linear in the weights

        # The forward of the call within would answer to this hook again: it is off while it runs.
        handle = self.layer.register_forward_hook(_once(answer))
        try:
            yield
        finally:
            handle.remove()


def _once(answer: Any) -> Any:
    """A hook that does not answer to the call that it makes itself."""
    busy = []

    def hook(layer: nn.Module, given: tuple, out: Tensor) -> Tensor | None:
        if busy:
            return None
        busy.append(True)
        try:
            return answer(layer, given, out)
        finally:
            busy.clear()

    return hook


def fit(
    model: DiffusionModel,
    clean: Latents,
    conditioning: Conditioning,
    seeds: Sequence[int],
    prior: float,
) -> Laplace:
    """From latents of real images, one time and noise each by its seed."""
    layer = last_layer(model.network)
    weights = dict(layer.named_parameters())
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    layer.requires_grad_(True)
    try:
        for b, seed in enumerate(seeds):
            rows = {name: part[b : b + 1] for name, part in conditioning.items()}
            with torch.enable_grad():
                likelihood = model.offline_loss(clean[b : b + 1], rows, [seed])
                likelihood = likelihood * clean[b].numel() / 2
                slopes = torch.autograd.grad(likelihood, list(weights.values()))
            for total, slope in zip(totals.values(), slopes, strict=True):
                total += slope.square()
    finally:
        layer.requires_grad_(False)
    return Laplace(layer, {name: (total + prior).rsqrt() for name, total in totals.items()})
