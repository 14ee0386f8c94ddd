"""How weights lie in memory."""

from typing import Any

import torch
from torch import nn

from core.contracts import DiffusionModel


def decoder_in_channels_last(model: DiffusionModel) -> None:
    """On the CPU oneDNN's convolutions then copy no image into an order of their own.

    Less time, and much less memory where images are large and channels few (docs/numbers.md). The
    CPU's group norm is less exact in this order, 1e-5 of its output; drawing alone keeps the
    plain pipelines' bits, so this is for learning. On a GPU it was not measured.
    """
    vae: Any = model.vae
    if next(model.network.parameters()).device.type == "cpu":
        nn.Module.to(vae.decoder, memory_format=torch.channels_last)
