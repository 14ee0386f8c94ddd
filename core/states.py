"""Random generators and optimizers in, plain tensors and JSON out, and back to the bit."""

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack_rng() -> dict[str, Tensor]:
    """The global random states of torch (CPU and every CUDA device), numpy and Python."""
    states = {"torch": torch.get_rng_state()}
    for device in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        states[f"cuda.{device}"] = torch.cuda.get_rng_state(device)
    others = {"numpy": np.random.get_state(), "python": random.getstate()}
    for name, state in others.items():
        text = json.dumps(state, default=lambda array: array.tolist())
        states[name] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()
    return states


def unpack_rng(states: Mapping[str, Tensor]) -> None:
    """Put back what `pack_rng` took; states of devices that are not here are passed over."""
    torch.set_rng_state(states["torch"])
    for device in range(torch.cuda.device_count()):
        if f"cuda.{device}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{device}"], device)
    kind, keys, *rest = json.loads(bytes(states["numpy"].tolist()))
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    version, internal, gauss = json.loads(bytes(states["python"].tolist()))
    random.setstate((version, tuple(internal), gauss))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state split into tensors (`<parameter>.<name>`) and JSON."""
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in whole["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    groups = [
        {name: float(v) if isinstance(v, Tensor) else v for name, v in group.items()}
        for group in whole["param_groups"]
    ]
    return tensors, {"groups": groups, "plain": plain}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Give an optimizer over the same parameters back what `optimizer_tensors` took."""
    values: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        values.setdefault(int(index), {})[name] = tensor
    for index, plain in state["plain"].items():
        values.setdefault(int(index), {}).update(plain)
    groups = [_tupled(group) for group in state["groups"]]
    optimizer.load_state_dict({"state": values, "param_groups": groups})


def _tupled(group: Mapping[str, Any]) -> dict[str, Any]:
    """JSON turns tuples (`betas`) into lists; only `params` is a list in torch."""
    return {
        name: tuple(value)
        if isinstance(value, list) and name not in ("params", "param_names")
        else value
        for name, value in group.items()
    }
