"""What memory there is: the machine's, or the container's where that has less."""

import psutil

from core import memory


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
