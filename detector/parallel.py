"""One training on several processes: a global batch in, each process's rows and their sum out.

Row j of a global batch lies on process j mod P, so that what the first rows alone cost (hardening)
is shared out too. What is drawn is drawn for the global batch everywhere; the gradient is that of
one process up to rounding. Legend: P processes, b rows of this one, c channels, h w cells.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from core.errors import UserError
from core.processes import several, this_process

Rows = TypeVar("Rows", Tensor, list)


@dataclass(frozen=True)
class Share:
    """Which rows of every global batch are this process's."""

    rank: int = 0
    of: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def rows(self, batch: Rows) -> Rows:
        return batch if self.of == 1 else batch[self.rank :: self.of]

    def whole(self, rows: Tensor) -> Tensor:
        """The global batch that these are the rows of; raises `UserError` for several sizes."""
        if self.of == 1:
            return rows
        sides = torch.tensor(rows.shape, device=rows.device)
        if bool((self._all(sides) != sides).any()):
            raise UserError("the images have several sizes; give one with --size.")
        return self._all(rows).transpose(0, 1).flatten(0, 1)

    def mean(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Each number, averaged over the processes."""
        if self.of == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return (total / self.of).tolist()

    def average_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """One all-reduce of all; each process then holds the same to the bit."""
        if self.of == 1:
            return
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        flat = torch.cat([grad.flatten() for grad in grads])
        distributed.all_reduce(flat)
        flat /= self.of
        for weight, grad, piece in zip(
            weights, grads, flat.split([grad.numel() for grad in grads]), strict=True
        ):
            weight.grad = grad.copy_(piece.view_as(grad))

    def any(self, wish: bool, device: torch.device) -> bool:
        """Whether any process wishes it."""
        return self.mean([float(wish)], device)[0] > 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others."""
        if self.of == 1:
            yield
            return
        with this_process().main_process_first():
            yield

    def equalise(self, module: nn.Module) -> None:
        """Everybody's weights and statistics are the main process's."""
        if self.of > 1:
            for tensor in module.state_dict().values():
                packed = tensor.contiguous()
                distributed.broadcast(packed, 0)
                tensor.copy_(packed)

    def check(self, **batches: int) -> None:
        """Raise `UserError` unless every batch can be shared out evenly."""
        for name, size in batches.items():
            if size % self.of:
                raise UserError(
                    f"--{name.replace('_', '-')} {size} does not divide by {self.of} processes: "
                    f"give {max(1, round(size / self.of)) * self.of}, or launch fewer."
                )

    def _all(self, mine: Tensor) -> Tensor:
        """(P, ...) what each process gives, in their order."""
        parts = [torch.empty_like(mine.contiguous()) for _ in range(self.of)]
        distributed.all_gather(parts, mine.contiguous())
        return torch.stack(parts)


WHOLE = Share()


def own_share() -> Share:
    """This process's, as the launcher said it."""
    if not several():
        return WHOLE
    place = this_process()
    return Share(place.process_index, place.num_processes)


def share_out(module: nn.Module, share: Share) -> None:
    """Within the module, what looks at a whole batch looks at the global one.

    Batch norm would otherwise normalise by the statistics of P small batches, which is another
    loss than one process's, and keep running ones that differ; and stochastic depth would skip the
    same blocks for one row of every process.
    """
    for name, child in module.named_children() if share.of > 1 else ():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, GlobalBatchNorm(child, share))
        elif type(child).__name__ in ("SegformerDropPath", "DropPath"):  # transformers' and timm's
            setattr(module, name, GlobalDropPath(float(getattr(child, "drop_prob", 0.0)), share))
        else:
            share_out(child, share)


class GlobalBatchNorm(nn.Module):
    """A batch norm, under its own names, whose batch is that of all processes."""

    def __init__(self, norm: nn.BatchNorm2d, share: Share):
        super().__init__()
        self.share, self.eps, self.momentum = share, norm.eps, norm.momentum
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.weight: Any = norm.weight
        self.bias: Any = norm.bias
        self.train(norm.training)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training:
            mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
            return nn.functional.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        means, variances = AllGather.apply(torch.stack([mean, var]), self.share).unbind(1)
        # As many rows on each process: what lies between their means is variance too.
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        self._follow(mean.detach(), var.detach(), self.share.of * x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    def _follow(self, mean: Float[Tensor, " c"], var: Float[Tensor, " c"], n: int) -> None:
        """Running statistics, of the global batch and so the same on every process."""
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.get_buffer("num_batches_tracked").add_(1)
            self.get_buffer("running_mean").lerp_(mean, momentum)
            self.get_buffer("running_var").lerp_(var * n / max(1, n - 1), momentum)


class GlobalDropPath(nn.Module):
    """Stochastic depth as transformers has it; drawn for the global batch, whose rows are ours."""

    def __init__(self, drop_prob: float, share: Share):
        super().__init__()
        self.drop_prob, self.share = drop_prob, share

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        shape = (len(x) * self.share.of,) + (1,) * (x.ndim - 1)
        drawn = torch.floor(torch.rand(shape, dtype=x.dtype, device=x.device) + keep)
        return x.div(keep) * self.share.rows(drawn)


class AllGather(torch.autograd.Function):
    """(P, ...) of every process; backward: what all processes' losses say of ours, summed."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, share: Share) -> Tensor:
        ctx.rank = share.rank
        return share._all(mine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[ctx.rank], None
