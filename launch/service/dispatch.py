"""The queue: work for a job in; that work called once it is its turn, also after a restart.

The one module that knows DBOS, which holds the order and calls the work. It decides nothing: what
is called looks into the job table, which is the truth, and may find that there is nothing to do.
DBOS looks at its tables several times a second, so it sleeps while nothing waits.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from dbos import DBOS, Serializer, SetWorkflowID

Kind = Literal["check", "start"]
KINDS: tuple[Kind, ...] = ("check", "start")
POLL = 2.0
"""Seconds between two looks at a queue."""
QUIET = 20.0
"""Seconds without work after which the engine may sleep."""
OPEN = ["ENQUEUED", "PENDING", "DELAYED"]
"""DBOS's words for work that is still to be done."""
DAMAGED = sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT
DONE = ["SUCCESS", "ERROR", "CANCELLED"]

log = logging.getLogger("diffdoctor.service")


class Work(NamedTuple):
    """What is to be done for which attempt of a job."""

    kind: Kind
    job: str
    attempt: int


class Dispatcher:
    """One a process. The work of a kind is done one at a time, in the order in which it came."""

    def __init__(self, url: str, do: Callable[[Work], None]):
        self._do = do
        self._url = url
        self._awake = False
        self._stopped = False
        self._used = 0.0

    def start(self) -> None:
        """Take up what was left, and go on."""
        global _current
        _current = self
        _put_aside_if_damaged(sa.make_url(_plain(self._url)))
        with _turn:
            self._wake()

    def stop(self) -> None:
        with _turn:
            self._stopped = True
            self._sleep()

    def rest(self) -> None:
        """Let the engine sleep where nothing was to do for long: it reads its tables all day."""
        with _turn:
            if self._awake and time.monotonic() - self._used > QUIET and not self._open():
                self._sleep()

    def put(self, work: Work) -> None:
        """Have it done once; work that waits already is not put a second time."""
        with _turn:
            if self._stopped:
                return  # it stands in the table, and is put at the next start
            self._wake()
            number = 1
            while (status := DBOS.get_workflow_status(_name(work, number))) is not None:
                if status.status in OPEN:
                    return
                number += 1
            with SetWorkflowID(_name(work, number)):
                DBOS.enqueue_workflow(work.kind, _do, *work)

    def waiting(self) -> set[Work]:
        """Everything that is still to be done, or being done."""
        with _turn:
            return self._open() if self._awake else set()

    def prune(self, before: float) -> None:
        """Forget work that was done before a moment."""
        moment = datetime.fromtimestamp(before, UTC).isoformat()
        chosen: dict[str, Any] = {"completed_before": moment, "limit": 1000}
        found: list[Any] = [None]
        while found:
            with _turn:
                if self._stopped:
                    return
                self._wake()
                found = DBOS.list_workflows(
                    status=DONE, load_input=False, load_output=False, **chosen
                )
                DBOS.delete_workflows([one.workflow_id for one in found])

    def _open(self) -> set[Work]:
        found = DBOS.list_workflows(status=OPEN, load_input=False, load_output=False)
        return {_read(one.workflow_id) for one in found if one.name == _do.__name__}

    def _wake(self) -> None:
        self._used = time.monotonic()
        if self._awake:
            return
        said = logging.getLogger("dbos")  # into our log, in its form and without secrets
        for handler in said.handlers[:]:
            said.removeHandler(handler)
        said.addHandler(logging.NullHandler())  # else it would add its own again
        said.propagate = True
        DBOS(
            config={
                "name": "diffdoctor",
                "system_database_url": _plain(self._url),
                "serializer": _Json(),
                "application_version": "1",  # else an upgrade would leave older work behind
                "executor_id": "service",
                "log_level": "ERROR",
            }
        )
        try:
            DBOS.launch()
            for kind in KINDS:
                DBOS.register_queue(kind, worker_concurrency=1, polling_interval_sec=POLL)
        except Exception:
            DBOS.destroy()  # half awake it would not be woken again
            raise
        self._awake = True

    def _sleep(self) -> None:
        if self._awake:
            self._awake = False
            DBOS.destroy()

    def do(self, work: Work) -> None:
        self._do(work)


class _Json(Serializer):
    """Work is words and numbers: nothing that would have to be pickled."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data, default=str)

    def deserialize(self, serialized_data: str) -> Any:
        return json.loads(serialized_data)

    def name(self) -> str:
        return "json"


_current: Dispatcher | None = None
_turn = threading.Lock()


@DBOS.workflow(name="_do", max_recovery_attempts=None)
def _do(kind: Kind, job: str, attempt: int) -> None:
    if _current is not None:
        _current.do(Work(kind, job, attempt))


def _name(work: Work, number: int) -> str:
    return f"{work.kind}:{work.job}:{work.attempt}:{number}"


def _read(name: str) -> Work:
    kind, job, attempt, _ = name.split(":")
    return Work(kind, job, int(attempt))  # pyright: ignore


def _put_aside_if_damaged(url: sa.URL) -> None:
    """A queue of SQLite's that cannot be read makes way: the tables know all that it held."""
    if url.get_backend_name() != "sqlite" or not Path(url.database or "").is_file():
        return
    queue = Path(url.database or "")
    try:
        with closing(sqlite3.connect(queue)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in DAMAGED:
            raise
        found = str(error)
    if found == "ok":
        return
    for one in (queue, *(queue.with_name(f"{queue.name}-{end}") for end in ("wal", "shm"))):
        if one.exists():
            one.replace(one.with_name(f"{one.name}.damaged"))
    log.warning("%s is damaged (%s): it is put aside, and made anew", queue.name, found)


def _plain(url: str) -> str:
    """SQLite's queue lies beside its jobs: two writers of one file would wait for one another."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        parsed = parsed.set(database=f"{parsed.database}.queue")
    return parsed.render_as_string(hide_password=False)
