"""Trainers as processes of this machine, in sessions of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch.folder import LOG, Lease, boot_id, host, is_held, start_ticks
from launch.launchers.contract import Liveness, environment

MARK = "DIFFDOCTOR_JOB"
"""In the environment of all that belongs to an attempt: JOB:ATTEMPT."""
ENDING = 10.0
"""Seconds within which what was killed is gone."""


class Local:
    """The handle is the process's number, when it began, and the machine's boot, as JSON."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def submit(self, folder: Path, attempt: int) -> str:
        self._reap()
        words = [sys.executable, "-P", "-m", "launch.trainer", str(folder), str(attempt)]
        with (folder / LOG).open("ab") as log:
            child = subprocess.Popen(
                words,
                cwd=folder,
                env=environment() | {MARK: f"{folder.name}:{attempt}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return _handle(child.pid, start_ticks(child.pid) or 0)

    def poll(self, folder: Path, attempt: int, handle: str) -> Liveness:
        self._reap()
        try:
            if json.loads(handle)["host"] != host():
                return Liveness.UNKNOWN
            alive = _process_lives(handle) or is_held(folder, attempt)
            return Liveness.ALIVE if alive else Liveness.DEAD
        except (OSError, ValueError, KeyError):
            return Liveness.UNKNOWN

    def cancel(self, folder: Path, attempt: int, handle: str) -> None:
        until = time.monotonic() + ENDING
        while time.monotonic() < until:
            found = _members(f"{folder.name}:{attempt}")
            if not found:
                break
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self._reap()
            time.sleep(0.02)

    def recover(self, folder: Path, attempt: int) -> str | None:
        lease = Lease.read(folder)
        if lease is not None and lease.attempt == attempt:
            return json.dumps(
                {"host": lease.host, "boot": lease.boot, "pid": lease.pid, "start": lease.start}
            )
        for pid in _members(f"{folder.name}:{attempt}"):  # started, and not yet at its lease
            start = start_ticks(pid)
            if start is not None:
                return _handle(pid, start)
        return None

    def _reap(self) -> None:
        """Take note of our own children's ends, so that none stays a zombie."""
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                self._children.pop(pid, None)


def _handle(pid: int, start: int) -> str:
    return json.dumps({"host": host(), "boot": boot_id(), "pid": pid, "start": start})


def _process_lives(handle: str) -> bool:
    known = json.loads(handle)
    return known["boot"] == boot_id() and start_ticks(known["pid"]) == known["start"]


def _members(mark: str) -> list[int]:
    """Processes of ours that carry an attempt's mark in their environment."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # of another user, or gone by now
    return [pid for pid in found if start_ticks(pid) is not None]
