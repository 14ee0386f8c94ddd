"""A micro-batch in, its gradient out: in smaller pieces where memory ends, of the same samples."""

import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import UserError
from treat.update import Update

Figures = dict[str, Tensor | float]
Learn = Callable[[range, float], dict[str, Tensor]]
"""Adds the gradient of some samples (by their places) to `.grad`, and gives their mean figures."""


class Pieces:
    """Computes micro-batches at once, and in half as large pieces whenever memory ends.

    How large is kept in `update.most`, so that a run which goes on computes what it would have.
    `tell` is told. Where a single image does not fit, `keep` saves the last update and gives its
    step, and what goes on from there begins with whole micro-batches. Without `may_halve` nothing
    is halved: processes that share a network out must all do the same.
    """

    def __init__(
        self,
        update: Update,
        tell: Callable[..., Any],
        keep: Callable[[], int | None],
        may_halve: bool,
    ):
        self.update, self.tell, self.keep, self.may_halve = update, tell, keep, may_halve

    def run(self, learn: Learn, here: range, share: float) -> Figures:
        """All of `here`, at weight `share`; `UserError` where a single sample does not fit."""
        while True:
            try:
                return self._run(learn, here, share)
            except torch.OutOfMemoryError as error:
                said = str(error).split(". ")[0]
            self._halve(len(here), said)  # out of the handler: the error holds on to every tensor

    def _run(self, learn: Learn, here: range, share: float) -> Figures:
        most = min(len(here), self.update.most or len(here))
        total: Figures = {"pieces": float(math.ceil(len(here) / most))}
        for start in range(0, len(here), most):
            piece = here[start : start + most]
            part = len(piece) / len(here)
            for name, value in learn(piece, share * part).items():
                total[name] = total[name] + part * value if name in total else part * value
        return total

    def _halve(self, samples: int, said: str) -> None:
        for weight in self.update.weights:
            weight.grad = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        most = min(samples, self.update.most or samples)
        if most == 1:
            self.update.most = None  # what goes on is given other memory, or is alone now
            kept = self.keep()
            told = "" if kept is None else f" Step {kept} is kept."
            raise UserError(
                f"{said}: a single image does not fit.{told} `diffdoctor estimate` counts what "
                "each phase needs. With --checkpoint-blocks, --checkpoint-decoder or "
                "--two-pass-decode, and without --no-recompute, the same command goes on; for "
                "--quantise or smaller images choose another --out."
            )
        if not self.may_halve:
            raise UserError(
                f"{said}: {most} images at once do not fit, and processes that share the network "
                "out cannot each compute fewer: set --batch 1 and more --accumulation."
            )
        self.update.most = math.ceil(most / 2)
        self.tell("warn", f"{said}: from here on {self.update.most} images are computed at once")
