"""One attempt of a job: a run folder in, the program's run and its outcome in that folder out.

    python -m launch.trainer FOLDER ATTEMPT

An ordinary process that knows only its folder: it outlives whoever started it, and is found again
by the lease. Whatever it starts dies with it. A signal (SIGTERM, SIGINT, SIGUSR1) or `stop.json`
asks the program to save and stop; the exit code is that of the program.
"""

import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import yaml

from core.errors import UserError
from core.storage import write_atomic
from launch.folder import (
    LOCK,
    LOG,
    Job,
    Lease,
    Outcome,
    Program,
    asked_to_stop,
    boot_id,
    host,
    killed,
    start_ticks,
)

LOOK = 500
"""Milliseconds between two looks at `stop.json`."""
WAIT = 5.0
"""Seconds to wait for a former trainer's lock: one that is about to see that it is stale."""
GRACE = 60.0
"""Seconds that a cancelled program has to end by itself; one that pauses may save as long as it
takes."""
AGAIN = 5.0
"""Seconds after which a program that was to save is asked again: it may not have listened yet."""
PAUSED = os.EX_TEMPFAIL
"""`core.run.PAUSED`, whose module takes longer to import than all else here."""
STALE = 3
"""Exit code of a trainer that is not, or no more, the one for its folder."""
TAIL = 64 << 10
PR_SET_PDEATHSIG = 1


class Trainer:
    """Runs the programs of one attempt, one at a time."""

    def __init__(self, folder: Path, attempt: int):
        self.folder = folder
        self.attempt = attempt
        self.asked: signal.Signals | None = None
        self.asked_at = 0.0
        self.program: subprocess.Popen[bytes] | None = None

    def run(self, job: Job) -> Outcome:
        """All programs, until one fails or is stopped."""
        begun, code, error, done = time.time(), 0, "", 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self.hear)
        while done < len(job.programs) and not (code or self.asked):
            code, error = self.run_program(job, job.programs[done])
            done += code == 0
        by_us = self.asked is not None and code in (0, -self.asked, 128 + self.asked)
        stopped = done < len(job.programs) and (code == PAUSED or by_us)
        return Outcome(self.attempt, code, stopped, error, round(time.time() - begun, 3))

    def run_program(self, job: Job, program: Program) -> tuple[int, str]:
        """Its exit code, and what it gave as the reason of a failure."""
        settings = self.folder / ".settings.yaml"
        write_atomic(settings, yaml.safe_dump(program.settings).encode())  # what is odd, escaped
        words = [program.module, *program.words]
        if program.layout:
            layout = self.folder / ".layout.yaml"
            write_atomic(layout, yaml.safe_dump(program.layout).encode())
            words = ["launch.many", str(layout), *words]
        parent = os.getpid()
        with (self.folder / LOG).open("ab") as log:
            before = log.tell()
            self.program = subprocess.Popen(
                [sys.executable, "-P", "-m", *words, "--config", str(settings)],
                cwd=self.folder,
                env={**os.environ, **job.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=lambda: die_with(parent),
            )
        self.pass_on()  # what was heard before there was anyone to tell
        code = self.wait(self.program)
        kill_group(self.program.pid)
        if number := killed(code):
            more = " (its machine has no memory left?)" if number == signal.SIGKILL else ""
            return code, f"it was ended by signal {number}{more}"
        return code, reason(self.folder / LOG, before) if code else ""

    def wait(self, program: "subprocess.Popen[bytes]") -> int:
        """Until it has ended, passing on what `stop.json` says."""
        ended = select.poll()
        ended.register(os.pidfd_open(program.pid), select.POLLIN)
        while not ended.poll(LOOK):
            how = asked_to_stop(self.folder, self.attempt)
            wanted = {"pause": signal.SIGUSR1, "cancel": signal.SIGTERM}.get(how or "")
            if wanted is not None and self.asked is not wanted:
                self.hear(wanted, None)
            passed = time.monotonic() - self.asked_at
            if how == "cancel" and self.asked is signal.SIGTERM and passed > GRACE:
                kill_group(program.pid)
            elif self.asked is signal.SIGUSR1 and passed > AGAIN:
                self.hear(self.asked, None)
        return program.wait()

    def hear(self, number: int, frame: FrameType | None) -> None:
        self.asked, self.asked_at = signal.Signals(number), time.monotonic()
        self.pass_on()

    def pass_on(self) -> None:
        if self.asked is not None and self.program is not None and self.program.poll() is None:
            self.program.send_signal(self.asked)


def main(words: list[str]) -> int:
    folder, attempt = Path(words[0]).resolve(), int(words[1])
    lock = take_lock(folder)
    if lock is None:
        return STALE
    job, lease = Job.read(folder), Lease.read(folder)
    if job.attempt != attempt or (lease is not None and lease.attempt > attempt):
        return STALE
    start = start_ticks(os.getpid())
    assert start is not None  # we are alive
    Lease(attempt, host(), boot_id(), os.getpid(), start).write(folder)
    if asked_to_stop(folder, attempt) == "cancel":  # while it waited for its place
        return STALE
    outcome = Outcome.read(folder, attempt)
    if outcome is None:
        outcome = Trainer(folder, attempt).run(job)
        outcome.write(folder)
    lock.close()
    return abs(outcome.code)


def take_lock(folder: Path) -> BinaryIO | None:
    """The flock that says a trainer lives; None if another holds it, who is then the trainer."""
    held = (folder / LOCK).open("ab")
    until = time.monotonic() + WAIT
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        except BlockingIOError:
            if time.monotonic() > until:
                held.close()
                return None
            time.sleep(0.05)


def die_with(parent: int) -> None:
    """In the child, before it becomes the program: the kernel kills it when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(STALE)


def kill_group(leader: int) -> None:
    """What a program left behind ends with it."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


def reason(log: Path, start: int) -> str:
    """The last line that says `error:`, else the last line, of what was printed since `start`."""
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - TAIL))
        lines = stream.read().decode(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (said or lines or ["it said nothing"])[-1][:2000]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)
