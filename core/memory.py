"""What memory this process holds, for the figures of a step."""

import os
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")
PAGE = os.sysconf("SC_PAGE_SIZE")


def in_use(device: torch.device) -> dict[str, int]:
    """Bytes: `host_memory`, and on an accelerator `device_memory` with what torch keeps there for
    its next tensors. Takes some microseconds, and waits for no kernel."""
    held = {"host_memory": int(STATM.read_text().split()[1]) * PAGE}  # resident pages
    if device.type != "cpu":
        held["device_memory"] = torch.accelerator.memory_reserved(device)
    return held
