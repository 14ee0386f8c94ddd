"""The files of a run folder by which service, launcher and trainer speak to each other.

job.json      service -> trainer  what to run, and the number of the attempt: the fencing token
lease.json    trainer -> anyone   who works here; `.lease.lock` is flocked for as long
stop.json     service -> trainer  save and stop (pause), or only stop (cancel)
*.now         anyone -> program   pictures or a checkpoint after the present step (`core.wishes`)
outcome.json  trainer -> service  how the attempt ended; a trainer that dies leaves none
log.txt       what the program printed

Each is replaced as a whole. A file of another attempt than the one in question says nothing.
"""

import fcntl
import json
import os
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError
from core.storage import write_atomic

JOB, LEASE, LOCK = "job.json", "lease.json", ".lease.lock"
STOP, OUTCOME, LOG = "stop.json", "outcome.json", "log.txt"
MAX_BYTES = 4 << 20
"""No such file is longer; what is, is none of ours."""

How = Literal["pause", "cancel"]


@dataclass(frozen=True)
class Program:
    """`python -m module words... --config FILE`, where the file holds the settings."""

    module: str
    words: list[str]
    settings: dict[str, Any]
    layout: dict[str, Any] = field(default_factory=dict)
    """By which `accelerate launch` runs it as several processes; empty: it is one."""


@dataclass(frozen=True)
class Job:
    """What one attempt is to run, one program after the other."""

    job: str
    attempt: int
    programs: list[Program]
    environment: dict[str, str] = field(default_factory=dict)
    """Added to the trainer's own."""

    def write(self, folder: Path) -> None:
        _write(folder / JOB, {"format": 1, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Raises `UserError` where there is none, or none that this version knows."""
        found = read_json(folder / JOB)
        if found is None or found.pop("format", None) != 1:
            raise UserError(f"{folder} holds no {JOB} that this version can read.")
        programs = [Program(**one) for one in found.pop("programs")]
        return cls(programs=programs, **found)


@dataclass(frozen=True)
class Lease:
    """Who works in the folder: enough to know the process again, whatever took its number."""

    attempt: int
    host: str
    boot: str
    pid: int
    start: int
    """When the process began, in clock ticks since the boot."""

    def write(self, folder: Path) -> None:
        _write(folder / LEASE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Lease | None":
        return _read(cls, folder / LEASE)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, as its trainer saw it."""

    attempt: int
    code: int
    """Exit code of the last program that ran; minus the signal that ended it."""
    stopped: bool
    """It was asked to stop, or said so (exit code 75), and can be taken up again."""
    error: str
    """What the program gave as its reason, in one line."""
    seconds: float

    def write(self, folder: Path) -> None:
        _write(folder / OUTCOME, asdict(self))

    @classmethod
    def read(cls, folder: Path, attempt: int) -> "Outcome | None":
        found = _read(cls, folder / OUTCOME)
        return found if found is not None and found.attempt == attempt else None


def killed(code: int) -> int:
    """The signal by which a program ended; 0 where it ended by itself."""
    number = -code if code < 0 else code - 128  # `launch.many` says it as a shell does
    return number if number in signal.valid_signals() else 0


def ask_to_stop(folder: Path, attempt: int, how: How) -> None:
    """Tell the trainer of this attempt, wherever it runs; it looks twice a second."""
    _write(folder / STOP, {"attempt": attempt, "how": how})


def asked_to_stop(folder: Path, attempt: int) -> How | None:
    found = read_json(folder / STOP) or {}
    how = found.get("how")
    return how if found.get("attempt") == attempt and how in ("pause", "cancel") else None


def is_held(folder: Path, attempt: int) -> bool:
    """Whether a trainer of this attempt holds the folder's lock, whichever process it is."""
    lease = Lease.read(folder)
    if lease is None or lease.attempt != attempt:
        return False
    with (folder / LOCK).open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def boot_id() -> str:
    """Names the machine's present start: process numbers mean nothing across two."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When a process began (field 22 of its stat); None where it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # a name may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def host() -> str:
    return os.uname().nodename


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is no such file, or none of ours."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        found = json.loads(content) if len(content) <= MAX_BYTES else None
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read(cls: Any, path: Path) -> Any:
    found = read_json(path)
    try:
        return None if found is None else cls(**found)
    except TypeError:  # of a later version
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
