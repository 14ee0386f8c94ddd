"""A run folder in; what it newly says out: figures, events and checkpoints, each once.

Reading changes nothing, so the run may go on meanwhile. Only whole lines are read.
"""

import json
import math
import re
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
"""Bytes of a file that one look reads at most."""
LONGEST = 64 << 10
"""Bytes of a line beyond which it is passed over."""
RECENT = 20
"""Lines of figures that the pace is taken from."""
LEVELS = {"info", "warn", "error"}
_STEP = re.compile(r"step-(\d{8,18})")


@dataclass
class News:
    """What a look found, and where the next one goes on."""

    step: int | None
    """Of the newest figures."""
    events_from: int
    events_read: int
    saved: list[int]
    """Steps of all checkpoints that are there."""
    notes: list[dict[str, Any]] = field(default_factory=list)
    more: bool = False
    """There is more to read at once."""
    pace: float | None = None
    """Seconds of a step."""
    at: float = 0.0
    """When the newest figures were written."""


class Watch:
    """Follows the folder of one attempt; whoever has a job's cursors can take over."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.saved: list[int] | None = None
        """The checkpoints of the last look."""
        self._file = 0  # the inode of metrics.jsonl, which a resumed run writes anew
        self._read = 0
        self._times: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def look(self, step: int | None, events_read: int) -> News:
        """What came after these cursors."""
        figures, new_step, more = self._figures(-1 if step is None else step)
        notes, read, more_events = self._events(events_read)
        self.saved = saved_steps(self.folder)
        return News(
            new_step if new_step >= 0 else None,
            events_read,
            read,
            self.saved,
            figures + notes,
            more or more_events,
            *self._pace(),
        )

    def _pace(self) -> tuple[float | None, float]:
        if len(self._times) < 2:
            return None, 0.0
        (first, begun), (last, reached) = self._times[0], self._times[-1]
        return max(0.0, last - first) / (reached - begun), last

    def _figures(self, step: int) -> tuple[list[dict[str, Any]], int, bool]:
        """Steps that are computed again after a resume come out the same, and are told once."""
        path, notes = self.folder / "metrics.jsonl", []
        try:
            with path.open("rb") as stream:
                inode = path.stat().st_ino
                if inode != self._file or stream.seek(0, 2) < self._read:
                    self._file, self._read = inode, 0
                stream.seek(self._read)
                content = stream.read(CHUNK)
        except FileNotFoundError:
            return [], step, False
        lines, length = whole_lines(content)
        self._read += length
        for line in lines:
            number = line.pop("step", None)
            if not isinstance(number, int) or number <= step:
                continue
            step, at = number, line.pop("time", None)
            at = float(at) if isinstance(at, int | float) else time.time()
            self._times.append((at, number))
            said = ", ".join(f"{name} {_short(value)}" for name, value in list(line.items())[:6])
            notes.append(
                {
                    "message": f"step {number}: {said}",
                    "type": "metrics",
                    "data": {"step": number, **line},
                    "at": at,
                }
            )
        return notes, step, len(content) == CHUNK

    def _events(self, start: int) -> tuple[list[dict[str, Any]], int, bool]:
        try:
            with (self.folder / "events.jsonl").open("rb") as stream:
                stream.seek(start)
                content = stream.read(CHUNK)
        except FileNotFoundError:
            return [], start, False
        lines, length = whole_lines(content)
        notes = [
            {
                "message": str(line.get("message", ""))[:4000],
                "level": line["level"] if line.get("level") in LEVELS else "info",
                "data": line["data"] if isinstance(line.get("data"), dict) else {},
                "at": _moment(line.get("time")),
            }
            for line in lines
        ]
        return notes, start + length, len(content) == CHUNK


def whole_lines(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of the lines that are ended, and the bytes that they took.

    A line without an end in a whole chunk is no line of ours: the chunk is passed over.
    """
    end = content.rfind(b"\n") + 1
    if not end and len(content) == CHUNK:
        return [], CHUNK
    found = []
    for line in content[:end].splitlines():
        try:
            record = json.loads(line) if len(line) <= LONGEST else None
        except (ValueError, RecursionError):
            continue  # torn by a crash, or none of ours
        if isinstance(record, dict):
            found.append(kept(record))
    return found, end


def kept(value: Any) -> Any:
    """Without what no database keeps: half characters, zero bytes, numbers that are none."""
    if isinstance(value, dict):
        return {kept(name): kept(one) for name, one in value.items()}
    if isinstance(value, list):
        return [kept(one) for one in value]
    if isinstance(value, str):
        return value.encode(errors="replace").decode().replace("\0", "?")
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def saved_steps(folder: Path) -> list[int]:
    """Checkpoints carry their name only once they are whole."""
    try:
        names = [path.name for path in (folder / "checkpoints").iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in map(_STEP.fullmatch, names) if match)


def _moment(text: Any) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return time.time()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
