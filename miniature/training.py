"""What lasts from one update of a miniature's base to the next: average, rate, checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core import checkpoint


def follow(mean: dict[str, Tensor], network: nn.Module, share: float) -> None:
    """Move the average a share of the way to the weights."""
    now = network.state_dict()
    lerp: Any = torch._foreach_lerp_  # pyright: ignore
    lerp(list(mean.values()), [now[name] for name in mean], share)


def rate_share(step: int, share: float) -> float:
    """Warm up over 200 steps, hold, and from .6 on fall in a line to 2 %."""
    return min(1.0, step / 200) * min(1.0, max(0.02, (1 - share) / 0.4))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """In place where the rate is a tensor: a recorded update reads it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def keep(
    folder: Path,
    step: int,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    mean: dict[str, Tensor],
) -> None:
    tensors, state = {"network": network.state_dict(), "mean": mean}, {}
    for i, optimizer in enumerate(optimizers):
        tensors[f"optimizer{i}"], state[str(i)] = checkpoint.optimizer_tensors(optimizer)
    checkpoint.save(folder, step, tensors, state)


def resume(
    folder: Path,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    mean: dict[str, Tensor],
) -> int:
    """Load the newest checkpoint into everything given; the number of steps done."""
    found = checkpoint.load_newest(folder)
    if found is None:
        return 0
    network.load_state_dict(found.tensors["network"])
    for name, average in mean.items():
        average.copy_(found.tensors["mean"][name])
    for i, optimizer in enumerate(optimizers):
        checkpoint.restore_optimizer(optimizer, found.tensors[f"optimizer{i}"], found.state[str(i)])
    return found.step
