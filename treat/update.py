"""Gradients of terms, micro-batches and processes in; one clip and one optimizer step out.

Every update ends in one all-reduce: the flat adapter gradient with the figures of the step and the
wish to stop behind it. No wrapper around the network, so none that a hand-written loop could lose.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import broadcast, reduce
from torch import Tensor, nn

from core import seeds as seeding
from core.checkpoint import optimizer_tensors, restore_optimizer
from core.errors import UserError
from core.order import batch_indices
from core.processes import this_process

FIGURES = ("pixel", "lock", "image", "offline", "pieces")
"""What a step may report besides its gradient; zero where a term is off. `pieces`: in how many a
micro-batch was computed, on the mean of all processes."""
MAX_SKIPPED = 3
"""Updates in a row that may come out not finite before the run stops."""
LORA, NOISE, OFFLINE, PROMPTS, WATCH, REFRESH, VIEWS, STEPS, REDRAWS, SIZE, SHAPE = range(1, 12)
"""What a draw is for; see `core.seeds`."""


class Update:
    """The optimizer of the adapters; equal on every process from the first broadcast on."""

    def __init__(self, weights: list[nn.Parameter], weight_decay: float, clip: float):
        self.weights, self.clip = weights, clip
        self.skipped = 0
        self.spent = 0.0
        """Sum of the rates of all updates that changed something."""
        self.stopping = False
        self.most: int | None = None
        """Samples that this process computes at once, where memory set a limit."""
        # foreach=False: one way of adding up on every CPU and version. A GPU would wait for the
        # host, which launches some thousand small kernels.
        self.optimizer = torch.optim.AdamW(
            weights, weight_decay=weight_decay, foreach=False, fused=weights[0].is_cuda
        )
        self.size = sum(weight.numel() for weight in weights)
        self.total = torch.zeros(self.size + len(FIGURES) + 1, device=weights[0].device)
        for weight in weights:
            broadcast(weight.data, from_process=0)

    def collect(self, share: float, figures: Mapping[str, Tensor | float]) -> None:
        """Add one micro-batch: the adapters' `.grad`, and `share` of its figures.

        The sum stands apart from `.grad`, so that it is the same whether the micro-batches lie on
        one process or on several.
        """
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        self.total[: self.size] += torch.cat([grad.flatten() for grad in grads])
        for place, name in enumerate(FIGURES):
            self.total[self.size + place] += share * figures.get(name, 0.0)
        for weight in self.weights:
            weight.grad = None

    def apply(self, step: int, seed: int, stop: bool, rate: float) -> dict[str, float]:
        """Share the sum, clip it, step at `rate`; an update that is not finite changes nothing.

        Raises `UserError` after `MAX_SKIPPED` of these in a row.
        """
        self.total[-1] = float(stop)
        total = reduce(self.total, reduction="sum")
        assert isinstance(total, Tensor)  # a tensor in, a tensor out
        self.stopping = bool(total[-1] > 0)
        # The norm as well: one that overflows would be clipped to a gradient of zeros.
        finite = bool(total.isfinite().all() and total[: self.size].norm().isfinite())
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped >= MAX_SKIPPED:
            raise UserError(
                f"{MAX_SKIPPED} updates in a row were not finite, the last at step {step} of seed "
                f"{seed}: lower --learning-rate or --pixel-weight; the same command replays it."
            )
        self.optimizer.param_groups[0]["lr"] = rate
        norm = self._step(total) if finite else float("nan")
        self.spent += rate if finite else 0.0
        figures = dict(zip(FIGURES, total[self.size : -1].tolist(), strict=True))
        self.total.zero_()
        return {**figures, "gradient_norm": norm, "skipped": self.skipped}

    def _step(self, total: Tensor) -> float:
        pieces = total[: self.size].split([weight.numel() for weight in self.weights])
        for weight, piece in zip(self.weights, pieces, strict=True):
            weight.grad = piece.view_as(weight).clone()
        norm = nn.utils.clip_grad_norm_(self.weights, self.clip, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, plain = optimizer_tensors(self.optimizer)
        plain = {"optimizer": plain, "skipped": self.skipped, "most": self.most}
        return tensors, {**plain, "spent": self.spent}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        restore_optimizer(self.optimizer, tensors, state["optimizer"])
        self.skipped = state["skipped"]
        self.most = state.get("most")  # absent from earlier checkpoints
        self.spent = state.get("spent", 0.0)  # as well


class Places:
    """Which samples of the global batch a process computes, and what they draw.

    Sample j of step s draws the same noise on whichever process and in whichever micro-batch.
    """

    def __init__(self, seed: int, batch: int, accumulation: int):
        place = this_process()
        self.seed, self.batch = seed, batch
        self.rank, self.processes = place.process_index, place.num_processes
        self.total = batch * accumulation * self.processes
        self.share = 1 / (accumulation * self.processes)
        """Weight of a micro-batch in an update."""

    def here(self, micro: int) -> range:
        """Positions in the global batch."""
        start = (micro * self.processes + self.rank) * self.batch
        return range(start, start + self.batch)

    def rows(self, purpose: int, n: int, step: int, here: range) -> list[int]:
        """Positions among `n` prompts or images; every epoch in an order of its own."""
        chosen = batch_indices(n, self.total, seeding.mix(self.seed, purpose), step)
        return [chosen[place] for place in here]

    def seeds(self, purpose: int, step: int, here: range) -> list[int]:
        return [seeding.mix(self.seed, purpose, step, place) for place in here]
