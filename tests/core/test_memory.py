"""What memory there is: the machine's, or the container's where that has less."""

import os
import platform
import subprocess
import sys

import psutil
import pytest

from core import memory

GIVEN = """
import torch
from core import memory
resident = lambda: memory.in_use(torch.device("cpu"))["host_memory"]
blocks = [b"x" * 65536 for _ in range(4000)]  # 262 MB
held = resident()
blocks = blocks[::16]  # what lives on between keeps the rest from going by itself
print(held - resident())
assert memory.give_back() and len(blocks) == 250
print(held - resident())
"""


def test_a_container_may_have_less_than_its_machine(tmp_path, monkeypatch):
    machine = psutil.virtual_memory().total
    limits = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(memory, "LIMITS", limits)
    assert memory.machine_memory() == machine
    limits[0].write_text("max\n")  # none
    limits[1].write_text(f"{2**63 - 4096}\n")  # none, in the older way
    assert memory.machine_memory() == machine
    limits[0].write_text("1000000\n")
    assert memory.machine_memory() == 1_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps less")
def test_freed_memory_goes_back_to_the_system():
    """In a process with the C library's own settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "LD_PRELOAD"))}
    done = subprocess.run([sys.executable, "-c", GIVEN], capture_output=True, env=kept, check=True)
    freed, given = map(float, done.stdout.split())
    assert freed < 100e6 and given > 200e6
