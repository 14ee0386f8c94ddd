"""Every job that is not final in; what is next for it done, however often the service restarts.

The queue calls `check` and `start`; a thread looks at all attempts that hold a slot, several times
a second, and now and then for jobs that no queue knows. Tables and run folders say it all: what is
remembered here, how often something failed, a restart may lose.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from core.errors import DiskFull, UserError
from launch.folder import Job, Outcome, ask_to_stop, asked_to_stop
from launch.launchers import Launcher, Liveness
from launch.launchers.contract import Unreachable
from launch.methods import METHODS
from launch.service.attempt import LEVELS, TOLD, judged, programs
from launch.service.bell import Bell
from launch.service.checker import Checker, Closed, Unanswered
from launch.service.checks import check_file
from launch.service.database import Row
from launch.service.dispatch import Work
from launch.service.looks import Looks
from launch.service.noted import Note
from launch.service.requests import worded
from launch.service.shelf import Files, result_rows
from launch.service.states import LIMIT, Event, Refused, State
from launch.service.store import Jobs
from launch.service.watch import Watch

LOOK = 0.25
"""Seconds between two looks at the running jobs, while one is young or somebody listens."""
REST = 2.0
"""Seconds between two looks otherwise: each costs the machine a millisecond or two."""
YOUNG = 10.0
"""Seconds that an attempt is young."""
SWEEP = 10.0
"""Seconds between two searches for jobs that no queue knows, and after a start that failed."""
LONGEST = 600.0
"""Seconds between two starts that fail; each pause is twice the last one."""
GRACE = 90.0
"""Seconds that a cancelled trainer has; it gives its program 60."""

log = logging.getLogger("diffdoctor.service")


class Supervisor:
    """The owner of every job."""

    def __init__(
        self,
        jobs: Jobs,
        files: Files,
        checker: Checker,
        launchers: Mapping[str, Launcher],
        launcher: str,
        root: Path,
        bell: Bell,
        slots: int = 1,
        devices: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        layout: Mapping[str, Any] | None = None,
    ):
        self.jobs, self.files, self.checker, self.root, self.bell = jobs, files, checker, root, bell
        self.launchers, self.launcher = launchers, launcher
        self.slots, self.devices = slots, devices
        self.environment = dict(environment or {})
        self.layout = dict(layout or {})
        self.put: Callable[[Work], None] = lambda work: None
        self.waiting: Callable[[], set[Work]] = set
        self.rest: Callable[[], None] = lambda: None
        self.looks = Looks()
        self._watches: dict[tuple[str, int], Watch] = {}
        self._starting: set[tuple[str, int]] = set()
        self._tries: dict[str, int] = {}
        self._held: dict[str, tuple[float, float]] = {}
        self._stopping = threading.Event()
        self._freed = threading.Event()
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None

    def folder(self, job_id: str) -> Path:
        return self.root / "jobs" / job_id

    # What the queue calls

    def do(self, work: Work) -> None:
        """Never raises: what could not be done is found again by the sweep."""
        try:
            if work.kind == "check":
                self.check(work.job)
            else:
                self.start(work.job, work.attempt)
        except (Refused, Closed):
            pass  # cancelled meanwhile, or done before; or the service ends
        except Unreachable as error:  # whether it was taken is asked at every look
            log.warning("%s of %s: %s", work.kind, work.job, error)
        except Exception:
            log.exception("%s of %s failed; it is tried again", work.kind, work.job)

    def check(self, job_id: str) -> None:
        """The job's files, and then its place in the queue."""
        job = self.jobs.job(job_id)
        if job is None or job["state"] != State.VALIDATING:
            return
        try:
            for file_id in job["uses"]:
                check_file(self.files, self.checker.ask, file_id, job["owner"])
        except UserError as error:
            self.refuse(job_id, "invalid_file", str(error))
            return
        except (Unanswered, OSError) as error:
            self._tries[job_id] = self._tries.get(job_id, 0) + 1
            if self._tries[job_id] < LIMIT:
                raise  # the sweep finds it again
            self.refuse(job_id, "unchecked", f"the files could not be checked: {error}")
            return
        row = self.change(job_id, Event.VALIDATED, notes=[Note("the files are in order; queued")])
        self.put(Work("start", job_id, row["attempt"]))

    def refuse(self, job_id: str, code: str, message: str) -> None:
        told = {"code": code, "message": message, "param": None}
        self.change(job_id, Event.INVALID, error=told, notes=[Note(message, "error")])

    def start(self, job_id: str, attempt: int) -> None:
        """Wait for a slot, then have a trainer started; `Refused` if none is wanted any more."""
        while not self._stopping.is_set():
            self._freed.clear()
            self._starting.add((job_id, attempt))
            try:
                note = Note(f"attempt {attempt} begins")
                slot = self.jobs.begin(job_id, attempt, self.slots, self.launcher, [note])
                if slot is not None:
                    self.launch(job_id, attempt, slot)
                    return
            finally:
                self._starting.discard((job_id, attempt))
            self._freed.wait(REST)

    def launch(self, job_id: str, attempt: int, slot: int) -> None:
        job = self.jobs.job(job_id)
        assert job is not None  # it has just begun
        folder = self.folder(job_id)
        environment = dict(self.environment)
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot]
        try:
            if job["step"] is not None and not folder.is_dir():  # it would begin anew, unasked
                raise FileNotFoundError("its run folder is gone: put it back, or cancel the job")
            folder.mkdir(exist_ok=True)
            asked = programs(job, METHODS[job["method"]], folder, self.layout)
            Job(job_id, attempt, asked, environment).write(folder)
            handle = self.launchers[self.launcher].submit(folder, attempt)
        except (UserError, OSError) as error:
            log.error("%s: %s", job_id, error)
            self.hold(job_id)
            ours = isinstance(error, OSError | DiskFull)  # this machine's fault, not the job's
            event = Event.UNSENT if ours else Event.VANISHED
            self.conclude(job, attempt, None, f"no trainer could be started ({error})", event)
            return
        self._held.pop(job_id, None)
        self.jobs.submitted(job_id, attempt, handle)
        self.bell.ring(job_id)
        self._begun.set()

    def hold(self, job_id: str) -> None:
        """Have the next start of a job wait, ever longer."""
        _, pause = self._held.get(job_id, (0.0, SWEEP))
        self._held[job_id] = (time.monotonic() + pause, min(2 * pause, LONGEST))

    # What the thread does

    def run(self) -> None:
        """Until `stop`; trainers go on without us."""
        swept, pause = 0.0, LOOK
        while True:
            self._begun.wait(pause)
            self._begun.clear()
            if self._stopping.is_set():
                return
            try:
                pause = LOOK if self.tend() else REST
                if time.monotonic() - swept > SWEEP:
                    self.sweep()
                    swept = time.monotonic()
            except Exception:
                log.exception("a look at the running jobs failed; the next one follows")

    def begin(self) -> None:
        self._thread = threading.Thread(target=self.run, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._freed.set()
        self._begun.set()
        if self._thread is not None:
            self._thread.join()
        self.looks.close()

    def sweep(self) -> None:
        """Give the queue what it does not know, whatever the reason."""
        known = self.waiting()
        kinds: tuple[tuple[State, Any], ...]
        kinds = ((State.VALIDATING, "check"), (State.QUEUED, "start"))
        for state, kind in kinds:
            for job_id, attempt in self.jobs.waiting(state):
                work = Work(kind, job_id, attempt)
                if work not in known and time.monotonic() >= self._held.get(job_id, (0.0, 0.0))[0]:
                    self.put(work)
        self.rest()

    def tend(self) -> bool:
        """Look at every attempt that holds a slot; whether the next look is to come soon."""
        live = {(job["id"], attempt["number"]): (attempt, job) for attempt, job in self.jobs.live()}
        looks = {key: partial(self.look_after, *rows) for key, rows in live.items()}
        self.looks.take({key: look for key, look in looks.items() if key not in self._starting})
        for gone in set(self._watches) - set(live):
            self._watches.pop(gone, None)
        since = time.time() - YOUNG
        return self.bell.heard() or any(one["begun_at"] > since for one, _ in live.values())

    def look_after(self, attempt: Row, job: Row) -> None:
        """One attempt: its news, whether it lives, how it ended, whether it is to stop."""
        folder, number = self.folder(job["id"]), attempt["number"]
        launcher = self.launchers[attempt["launcher"]]
        outcome = Outcome.read(folder, number)  # before the news, which are complete then
        self.tell(job, number)
        handle = attempt["handle"] or launcher.recover(folder, number)
        if outcome is None and handle is None:
            self.conclude(job, number, None, "the service ended first", Event.UNSENT)
            return
        if attempt["handle"] is None and handle is not None:
            self.jobs.submitted(job["id"], number, handle)
        if outcome is None:
            liveness = launcher.poll(folder, number, handle or "")
            if liveness is not Liveness.DEAD:
                self.ask(attempt, job, folder, launcher, handle or "", liveness)
                return
            outcome = Outcome.read(folder, number)  # its last word may have come just now
            self.tell(job, number)
            launcher.cancel(folder, number, handle or "")  # what it may have left behind
        self.conclude(job, number, outcome)

    def tell(self, job: Row, number: int) -> None:
        """All that the run folder newly says, into the table; what cannot be said ends nothing."""
        try:
            self.note_news(job, number)
        except OperationalError:  # the database is away: all of it is looked at again
            raise
        except Exception:
            log.exception("what %s says cannot be noted", job["id"])

    def note_news(self, job: Row, number: int) -> None:
        key, row = (job["id"], number), job
        while row is not None and row["state"] == State.RUNNING and row["attempt"] == number:
            # Taken out while it is read: where what it read is not kept, another starts afresh.
            watch = self._watches.pop(key, None) or Watch(self.folder(job["id"]))
            before = watch.saved
            news = watch.look(row["step"], row["events_read"])
            if news.notes or news.events_read > news.events_from or news.saved != before:
                if not self.jobs.record(job["id"], number, news):
                    return
                self.bell.ring(job["id"])
            self._watches[key] = watch
            if not news.more:
                return
            row = self.jobs.job(job["id"])

    def ask(
        self,
        attempt: Row,
        job: Row,
        folder: Path,
        launcher: Launcher,
        handle: str,
        liveness: Liveness,
    ) -> None:
        """Have a trainer stop that is not wanted any more, or that is to pause."""
        number, said = attempt["number"], asked_to_stop(folder, attempt["number"])
        wanted = job["state"] == State.RUNNING and job["attempt"] == number
        if wanted and job["pausing"] and said is None:
            ask_to_stop(folder, number, "pause")
        if wanted:
            return
        if said != "cancel":
            ask_to_stop(folder, number, "cancel")
        if attempt["stop_at"] is None:
            self.jobs.asked_to_stop(job["id"], number)
        elif time.time() - attempt["stop_at"] > GRACE and liveness is Liveness.ALIVE:
            launcher.cancel(folder, number, handle)

    def conclude(
        self,
        job: Row,
        number: int,
        outcome: Outcome | None,
        why: str = "its trainer has died (its machine restarted, or had no memory left?)",
        event: Event = Event.VANISHED,
    ) -> None:
        """Record how an attempt ended, and what that means for the job."""
        method, folder = METHODS[job["method"]], self.folder(job["id"])
        why = why.replace(f"{self.root}/", "")
        results: list[Row] = []
        error = {"code": "trainer_lost", "message": why, "param": None}
        note = Note(f"attempt {number} ended without a word: {why}", "warn")
        if event is Event.UNSENT:
            note = Note(f"attempt {number} was never started: {why}", "warn")
        if outcome is not None:
            said = worded(outcome.error, job["settings"], job["shown"], method)
            said = said.replace(f"{self.root}/", "")
            outcome = replace(outcome, error=said)
            event, error = judged(outcome, folder / method.place / method.proof)
            if event is Event.FINISHED:
                results = result_rows(job, folder, method.results, self.root)
            note = Note(TOLD[event].format(number=number, **(error or {})), LEVELS[event])
        ended = {} if outcome is None else vars(outcome)
        try:
            row = self.jobs.change(
                job["id"], event, number, [note], error, ended=ended, results=results
            )
        finally:
            self._freed.set()
            self.bell.ring(job["id"])
        if row["state"] == State.QUEUED and job["id"] not in self._held:
            self.put(Work("start", job["id"], row["attempt"]))

    def change(self, job_id: str, event: Event, **more: Any) -> Row:
        """`Jobs.change`, heard by those who listen."""
        row = self.jobs.change(job_id, event, **more)
        self.bell.ring(job_id)
        return row
