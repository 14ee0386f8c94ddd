"""Muon in float32: matrix gradients in, orthogonalised momentum steps out.

`torch.optim.Muon` iterates in bfloat16, which a CPU without bfloat16 units does at a third of
its float32 speed. Source: Jordan et al. 2024, with the step scaled to AdamW's usual size.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Float[Tensor, "m n"], rounds: int = 5) -> Float[Tensor, "m n"]:
    """The matrix with its singular values brought near 1 (quintic Newton-Schulz)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for 2-D weights inside a network."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(momentum, group["momentum"]))
                # .2 sqrt(max(m, n)): the root mean square of an AdamW step (Liu et al. 2025).
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)
