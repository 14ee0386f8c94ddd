"""What memory this process holds, for the figures of a step, and what it may hold at most."""

import ctypes
import sys
from pathlib import Path

import psutil
import torch

LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux says what a container may have, in its two ways."""


def machine_memory() -> int:
    """Bytes of the machine, or of the container where that has less."""
    said = [path.read_text().strip() for path in LIMITS if path.is_file()]
    return min([psutil.virtual_memory().total, *(int(text) for text in said if text.isdigit())])


def in_use(device: torch.device) -> dict[str, int]:
    """Bytes: `host_memory` that is resident, and on a CUDA GPU `device_memory` with what torch
    keeps there for its next tensors. Takes some microseconds, and waits for no kernel."""
    held = {"host_memory": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        held["device_memory"] = torch.cuda.memory_reserved(device)
    return held


def give_back() -> bool:
    """Return the memory of freed tensors to the system; False where the C library is not glibc.

    By itself it keeps blocks of up to 32 MiB for later. A phase that needs other sizes finds none
    that fit, and the peak counts both. Some 10 ms, and fresh pages have to be cleared again.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    return trim is not None
