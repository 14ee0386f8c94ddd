"""The environment that a launcher left in, this process's place among all out."""

import datetime
import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

TIMEOUT = datetime.timedelta(days=7)
"""Of the other processes: while the main one encodes prompts, measures, or waits for a person."""


def several() -> bool:
    """Whether this process was launched as one of many."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def this_process() -> PartialState:
    """This process among all, and its device; the first call in a process decides.

    accelerate sees several processes without an accelerator only when it is told of the CPU.
    """
    alone = parse_flag_from_env("ACCELERATE_USE_CPU")
    cpu = alone or (several() and not torch.accelerator.is_available())
    return PartialState(cpu=cpu, timeout=TIMEOUT)
