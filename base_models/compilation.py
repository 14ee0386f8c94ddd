"""The blocks of a network as compiled code: the same numbers but for rounding, sooner."""

import os
import shutil
from typing import Any

import torch
from torch import nn

from core.errors import UserError

COMPILERS = ("g++", "clang++")
FORMS = 64
"""A block is compiled for each form it is asked in: with gradient and without, with the adapters
and without them, at one size and at any. torch's own limit is eight, and it says little about it:
what comes after runs as before."""


def check_compilation(device: torch.device) -> None:
    """Raise `UserError` where blocks cannot be compiled for a device."""
    asked = os.environ.get("CXX")
    if device.type != "cpu" or any(map(shutil.which, [asked] if asked else COMPILERS)):
        return
    raise UserError(
        f"compile_blocks needs a C++ compiler on a CPU ({asked or ' or '.join(COMPILERS)} was not "
        "found): install one (`apt-get install g++`), name it in CXX, or leave compile_blocks out."
    )


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Each kind of repeated block once (torch.compile's regional compilation), in place.

    Adapters must be there already, and weights quantised. The first call in each form takes
    seconds to a minute. `backend`: one of torch.compile's.
    """
    torch._dynamo.config.recompile_limit = max(FORMS, torch._dynamo.config.recompile_limit)
    kinds = repeated(network)
    for block in network.modules():
        if type(block).__name__ in kinds:
            block.compile(backend=backend)


def repeated(network: Any) -> set[str]:
    """Class names of the blocks that a network of diffusers is made of."""
    return set(network._repeated_blocks or network._no_split_modules)
