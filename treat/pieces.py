"""A micro-batch in, its gradient out: in smaller pieces where memory ends, of the same samples."""

import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import UserError

Figures = dict[str, Tensor]
Learn = Callable[[range, float], Figures]
"""Adds the gradient of some samples (by their places) to `.grad`, and gives their mean figures."""


class Pieces:
    """How many pieces a micro-batch is computed in: one, and twice as many whenever memory ends.

    `tell` is told so. Without `may_halve` the error passes: processes that share a network out must
    all do the same.
    """

    def __init__(self, weights: list[nn.Parameter], tell: Callable[..., Any], may_halve: bool):
        self.weights, self.tell, self.may_halve = weights, tell, may_halve
        self.number = 1

    def run(self, learn: Learn, here: range, share: float) -> Figures:
        """All of `here`, at weight `share`; `UserError` where a single sample does not fit."""
        while True:
            try:
                return self._run(learn, here, share)
            except torch.OutOfMemoryError as error:
                if not self.may_halve:
                    raise
                said = str(error).split(". ")[0]
            self._halve(len(here), said)  # out of the handler: the error holds on to every tensor

    def _run(self, learn: Learn, here: range, share: float) -> Figures:
        size = math.ceil(len(here) / self.number)
        total: Figures = {}
        for start in range(0, len(here), size):
            piece = here[start : start + size]
            part = len(piece) / len(here)
            for name, value in learn(piece, share * part).items():
                total[name] = total[name] + part * value if name in total else part * value
        return total

    def _halve(self, samples: int, said: str) -> None:
        for weight in self.weights:
            weight.grad = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.number >= samples:
            raise UserError(
                f"{said}: a single image does not fit. `diffdoctor estimate` counts what each "
                "phase needs; try --checkpoint-blocks, --quantise, or smaller images."
            )
        self.number = min(samples, 2 * self.number)
        self.tell("warn", f"{said}: a micro-batch is computed in {self.number} pieces from here on")
