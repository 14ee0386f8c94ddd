"""Muon in float32: gradients of matrices and kernels in, orthogonalised momentum steps out.

`torch.optim.Muon` iterates in bfloat16, which a CPU without bfloat16 units does at a third of
its float32 speed, and takes its matrices one by one; here those of one shape go together.
Source: Jordan et al. 2024, with the step scaled to AdamW's usual size.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Float[Tensor, "*k m n"], rounds: int = 5) -> Float[Tensor, "*k m n"]:
    """The matrices with their singular values brought near 1 (quintic Newton-Schulz)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for the matrices and kernels inside a network.

    A kernel (outputs, inputs, height, width) is taken as the matrix (outputs, the rest).
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float | Tensor, momentum: float = 0.95
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore
        for group in self.param_groups:
            for alike in self.by_shape(group["params"]):
                nesterov = []
                for p in alike:
                    gradient = p.grad
                    assert gradient is not None  # see `by_shape`
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(gradient, 1 - group["momentum"])
                    nesterov.append(gradient.lerp(momentum, group["momentum"]))
                # .2 sqrt(max(m, n)): the root mean square of an AdamW step (Liu et al. 2025).
                matrices = torch.stack(nesterov).flatten(2)
                size = group["lr"] * 0.2 * max(matrices.shape[1:]) ** 0.5
                for p, update in zip(alike, orthogonalise(matrices), strict=True):
                    p.sub_(update.view_as(p) * size)  # a tensor's rate is no `alpha`

    def by_shape(self, parameters: Iterable[Tensor]) -> list[list[Tensor]]:
        """The weights that have a gradient, grouped by their shape."""
        groups: dict[torch.Size, list[Tensor]] = {}
        for p in parameters:
            if p.grad is not None:
                groups.setdefault(p.shape, []).append(p)
        return list(groups.values())
