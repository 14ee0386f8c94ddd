"""A device in; the seconds and GiB of work on it out, and how fast it multiplies."""

import gc
import statistics
import time
from typing import Any, NamedTuple

import torch

GIB = 2**30


class Mark(NamedTuple):
    name: str
    at: Any
    """A CUDA event, or seconds."""


class Stopwatch:
    """Times between marks; on a GPU by events in its queue, so that no mark makes it wait."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks: list[Mark] = []
        if self.cuda:
            torch.cuda.synchronize()
        self.begun = time.perf_counter()
        self.mark("")

    def mark(self, name: str) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(Mark(name, event))
        else:
            self.marks.append(Mark(name, time.perf_counter()))

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds of all, by the clock on the wall, and of each part."""
        if self.cuda:
            torch.cuda.synchronize()
        total = since(self.begun)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return total, {after.name: self._between(before.at, after.at) for before, after in pairs}

    def _between(self, before: Any, after: Any) -> float:
        return before.elapsed_time(after) / 1000 if self.cuda else after - before


def since(begun: float) -> float:
    return time.perf_counter() - begun


def dense_rate(n: int, device: torch.device) -> float:
    """Operations a second of an n x n product in bf16, on random numbers."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for number in range(4):
        stopwatch, products = Stopwatch(device), 100 if number else 10
        for _ in range(products):
            torch.mm(a, b)
        rates.append(products * 2 * n**3 / stopwatch.read()[0])
    return statistics.median(rates[1:])


def clean_up() -> None:
    """Give back what nothing holds, and forget the last peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def allocated() -> float | None:
    """GiB."""
    return torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else None


def peaks() -> dict[str, float | None]:
    """GiB since the last `clean_up`."""
    if not torch.cuda.is_available():
        return {"peak": None, "peak reserved": None}
    return {
        "peak": torch.cuda.max_memory_allocated() / GIB,
        "peak reserved": torch.cuda.max_memory_reserved() / GIB,
    }


def machine() -> dict[str, str]:
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda) if cuda else "-",
    }
