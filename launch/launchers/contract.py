"""The four calls that every launcher has."""

import os
import re
from enum import Enum
from pathlib import Path
from typing import Protocol, runtime_checkable

from core.errors import UserError

HIDDEN = "DIFFDOCTOR_", "PG"
"""Beginnings of the service's own variables: its database's password, a client's token."""


def environment() -> dict[str, str]:
    """What a trainer, or another child of the service, may see of the service's own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}


def job_name(folder: Path, attempt: int) -> str:
    """An attempt's name in a scheduler: fixed words and an id, safe in any line of a script."""
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", folder.name):
        raise UserError(f"{folder.name!r} is no name of a job.")
    return f"diffdoctor-{folder.name}-{int(attempt)}"


class Unreachable(Exception):
    """A scheduler did not answer, or not so that one could be sure."""


class Liveness(Enum):
    """Whether an attempt's trainer lives. UNKNOWN is an answer too: nothing is done on it."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@runtime_checkable
class Launcher(Protocol):
    """Starts trainers and knows about them; what they do stands in their folders."""

    def submit(self, folder: Path, attempt: int) -> str:
        """Have `python -m launch.trainer FOLDER ATTEMPT` run somewhere; a handle to ask by.

        Returns once the trainer, or its place in a scheduler's queue, outlives this process.
        Raises `UserError` where it cannot be started, `OSError` where this machine cannot just now,
        and `Unreachable` where that cannot be known: then `recover` is asked until it knows.
        """
        ...

    def poll(self, folder: Path, attempt: int, handle: str) -> Liveness:
        """Does that trainer live? Never raises."""
        ...

    def cancel(self, folder: Path, attempt: int, handle: str) -> None:
        """End it and all that belongs to it, now. Nothing happens where nothing lives."""
        ...

    def recover(self, folder: Path, attempt: int) -> str | None:
        """The handle of a submission that nobody wrote down; None if there was none.

        Raises `Unreachable` where that cannot be known; then it is asked again.
        """
        ...
