"""What memory this process holds, for the figures of a step."""

import psutil
import torch


def in_use(device: torch.device) -> dict[str, int]:
    """Bytes: `host_memory` that is resident, and on a CUDA GPU `device_memory` with what torch
    keeps there for its next tensors. Takes some microseconds, and waits for no kernel."""
    held = {"host_memory": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        held["device_memory"] = torch.cuda.memory_reserved(device)
    return held
