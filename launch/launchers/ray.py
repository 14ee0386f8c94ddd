"""Trainers as jobs of a Ray cluster whose machines see the service's root folder.

They go through Ray's Job Submission API, which the head's dashboard answers. What Ray runs is a
shell's line: it holds the folder, the number of the attempt and nothing else of a job; the trainer
reads the `job.json` of its folder. Ray does not know a name twice, so a submission whose answer was
lost is found by its name.
"""

import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.explain import unknown_name
from launch.folder import LOG, asked_to_stop, is_held
from launch.launchers.contract import Liveness, Unreachable, job_name

ADDRESS = "http://127.0.0.1:8265"
"""Where `ray start --head` listens for jobs."""
ALIVE = frozenset({"PENDING", "RUNNING"})
DEAD = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
EVERY = 5.0
"""Seconds for which word that a trainer lives is believed: a head is not to be asked often.
How a trainer ended stands in its folder, and is seen at once."""
PATIENCE = 20.0
"""Seconds that an answer may take."""
WAIT = 1.0
"""Seconds for which a question waits for the answer to another one."""
LOST = 600.0
"""Seconds after which an answer is not to come any more: Ray's client waits without end."""
ENDING = 30.0
"""Seconds within which what was stopped is gone; Ray gives it three before it kills."""
FORGOTTEN = "status code 404"
"""In what the client says of a job that Ray does not know, or no more."""
GB = 1 << 30
OPTIONS = ("address", "num_cpus", "num_gpus", "memory_gb")


class Ray:
    """The handle is the name that the job has in Ray."""

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        """`options`: the head's `address`, and what a trainer takes of its machine."""
        said = dict(options or {})
        for name in said:
            if name not in OPTIONS:
                raise UserError(unknown_name(name, OPTIONS, "an option of --ray"))
        self.address = said.pop("address", ADDRESS)
        if not self.address.startswith(("http://", "https://")):
            raise UserError(f"{self.address!r} is no address of Ray's dashboard: say {ADDRESS}.")
        taken = {"num_cpus": 1.0} | {name: _amount(name, value) for name, value in said.items()}
        memory = taken.pop("memory_gb", None)
        self.taken: dict[str, Any] = {f"entrypoint_{name}": n for name, n in taken.items()}
        if memory is not None:
            self.taken["entrypoint_memory"] = int(memory * GB)
        self._client: Any = None
        self._turn = threading.Condition()
        self._asked: float | None = None
        self._seen: dict[str, float] = {}

    def submit(self, folder: Path, attempt: int) -> str:
        """Raises `Unreachable` where Ray may have taken it all the same; `recover` knows."""
        name = job_name(folder, attempt)
        if not str(folder).isprintable():
            raise UserError(f"{str(folder)!r} cannot stand in a line: choose a plainer --root.")
        words = [sys.executable, "-P", "-m", "launch.trainer", str(folder), str(attempt)]
        line = f"exec {shlex.join(words)} >> {shlex.quote(str(folder / LOG))} 2>&1"
        told = {"diffdoctor_job": folder.name, "diffdoctor_attempt": str(attempt)}
        try:
            return self._ask(
                lambda client: client.submit_job(
                    entrypoint=line, submission_id=name, metadata=told, **self.taken
                )
            )
        except RuntimeError as error:
            if self._state(folder, attempt) is not None:
                return name
            raise UserError(f"Ray took no job ({_sentence(error)}).") from error

    def poll(self, folder: Path, attempt: int, handle: str) -> Liveness:
        if time.monotonic() - self._seen.get(handle, -EVERY) < EVERY:
            return Liveness.ALIVE
        try:
            if handle != job_name(folder, attempt):
                return Liveness.UNKNOWN
            state = self._state(folder, attempt)
            held = state not in ALIVE and is_held(folder, attempt)  # a head that lost its jobs
        except (Unreachable, UserError, OSError):
            return Liveness.UNKNOWN
        if state in ALIVE or held:
            self._seen[handle] = time.monotonic()
            return Liveness.ALIVE
        self._seen.pop(handle, None)
        return Liveness.DEAD if state is None or state in DEAD else Liveness.UNKNOWN

    def cancel(self, folder: Path, attempt: int, handle: str) -> None:
        if handle != job_name(folder, attempt):
            return
        self._seen.pop(handle, None)
        until = time.monotonic() + ENDING
        while time.monotonic() < until:
            try:
                state = self._state(folder, attempt)
                if state is None or state in DEAD:
                    return
                self._ask(lambda client: client.stop_job(handle))
            except (Unreachable, RuntimeError):  # it may have ended just now
                pass
            time.sleep(0.2)

    def recover(self, folder: Path, attempt: int) -> str | None:
        """Raises `Unreachable`, rather than say that there is none, where Ray does not answer."""
        return None if self._state(folder, attempt) is None else job_name(folder, attempt)

    def _state(self, folder: Path, attempt: int) -> str | None:
        """Ray's word for how a job is; None where it knows none of that name.

        None also for one that waits and is cancelled: Ray stops only what has begun, and a trainer
        that begins later sees it and leaves.
        """
        name = job_name(folder, attempt)
        cancelled = asked_to_stop(folder, attempt) == "cancel"  # before Ray is asked
        try:
            state = self._ask(lambda client: client.get_job_status(name)).value
        except RuntimeError as error:
            if FORGOTTEN in str(error):
                return None
            raise Unreachable(_sentence(error)) from error
        return None if cancelled and state == "PENDING" else state

    def _ask(self, what: Callable[[Any], Any]) -> Any:
        """What Ray answers; its client itself would wait for an answer without end.

        One question at a time: of a head that is silent, not every question leaves a thread behind.
        Raises `Unreachable` where none comes, and the client's `RuntimeError` where it is no.
        """
        answer: list[Any] = []
        fault: list[BaseException] = []
        asked = self._take_turn()

        def call() -> None:
            try:
                if self._client is None:
                    self._client = _connected(self.address)
                answer.append(what(self._client))
            except BaseException as error:
                fault.append(error)
            with self._turn:
                if self._asked == asked:  # else it was given up
                    self._asked = None
                    self._turn.notify()

        thread = threading.Thread(target=call, name="asks Ray", daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if answer:
            return answer[0]
        if fault and isinstance(fault[0], RuntimeError | UserError):
            raise fault[0]
        said = _sentence(fault[0]) if fault else f"no answer within {PATIENCE:.0f} s"
        raise Unreachable(f"Ray at {self.address}: {said}") from (fault[0] if fault else None)

    def _take_turn(self) -> float:
        """The moment, once no earlier question is open; `Unreachable` where one stays so."""
        with self._turn:
            now = time.monotonic()
            left = WAIT if self._asked is None else max(0.0, self._asked + WAIT - now)
            free = self._turn.wait_for(lambda: self._asked is None, left)
            if not free and now - (self._asked or now) < LOST:
                raise Unreachable(f"Ray at {self.address}: no answer yet to an earlier question")
            self._asked = time.monotonic()
            return self._asked


def _connected(address: str) -> Any:
    """Ray's client; it asks the head for its version at once."""
    try:
        from ray.job_submission import JobSubmissionClient  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("Ray is missing: in the checkout, pip install -e '.[ray]'.") from error
    try:
        return JobSubmissionClient(address)
    except RuntimeError as error:  # it lacks a package, or the head is of another age
        raise UserError(
            f"Ray's client is of no use here ({_sentence(error)}): in the checkout, "
            "pip install -e '.[ray]'."
        ) from error


def _amount(name: str, said: str) -> float:
    try:
        amount = float(said)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < 1e6:
        raise UserError(f"{name} of --ray is a number, not {said!r}.")
    return amount


def _sentence(error: BaseException) -> str:
    """The last line of what may be a traceback of the head's."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:500]
