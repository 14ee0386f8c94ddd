"""Laps of work in this process in; CPU seconds of each and the peak of resident memory out.

Linux only: `begin` gives back what the allocator holds in reserve, notes what is resident (VmRSS)
and writes 5 to /proc/self/clear_refs, which sets the high-water mark (VmHWM) back to it; the peak
is the mark at the end, less what was resident. Seconds are the processor's, of all threads. What
stays resident is also the C library's choice: see `benchmarks.side_by_side.GIVEN_BACK`.
"""

import gc
import statistics
import time
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.memory import give_back

PROC = Path("/proc/self")
MB = 1e6


class Footprint:
    """From `begin` on; every `lap` ends one step. The first warms up, and counts for the peak."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        self.resident = self.at = 0.0

    def begin(self) -> None:
        """Everything is loaded, and nothing computed."""
        gc.collect()
        if not give_back():
            raise UserError("This C library gives nothing back: measure on Linux with glibc.")
        (PROC / "clear_refs").write_text("5")
        self.resident = resident("VmRSS")
        self.at = time.process_time()

    def lap(self) -> None:
        now = time.process_time()
        self.laps.append(now - self.at)
        self.at = now

    def found(self) -> dict[str, Any]:
        """Median CPU seconds after the warm-up, and MB."""
        return {
            "cpu": statistics.median(self.laps[1:] or self.laps),
            "seconds": self.laps[1:],
            "warm-up": self.laps[0],
            "peak": resident("VmHWM") - self.resident,
            "resident": self.resident,
        }


def resident(which: str) -> float:
    """MB, by a line of /proc/self/status."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith(which + ":"):
            return int(line.split()[1]) * 1024 / MB
    raise UserError(f"{PROC}/status tells no {which}: this needs Linux.")
