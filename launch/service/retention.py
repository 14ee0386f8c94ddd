"""A moment in; what is older than it is to be kept removed from the queue, the tables and the root.

Run folders stay for ever unless the operator says for how many days; their jobs and events stay
in the tables either way.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.errors import UserError
from core.storage import remove_tree
from launch.service import tables as t
from launch.service.database import Database
from launch.service.noted import Note, write_notes
from launch.service.states import FINAL

DAY = 24 * 3600.0
QUEUE = 7 * DAY
"""Seconds for which the queue keeps work that is done, for whoever looks into it."""
KEYS = 30 * DAY
"""Seconds for which an idempotency key makes no second job."""
EVERY = 3600.0
JOB = re.compile(r"ftjob-[0-9a-f]{24}")

log = logging.getLogger("diffdoctor.service")


class Retention:
    """Removes in a thread of its own, at the start and every hour."""

    def __init__(
        self,
        database: Database,
        root: Path,
        prune_queue: Callable[[float], None],
        keep_days: float | None = None,
    ):
        self.read, self.write = database.read, database.write
        self.root, self.keep_days = root, keep_days
        self.prune_queue = prune_queue
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="retention", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for a large folder: what is left of it goes the next time."""
        self._stopping.set()
        self._thread.join(1)

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.sweep(time.time())
            except Exception:
                log.exception("removing what is old failed; it is tried again in an hour")
            self._stopping.wait(EVERY)

    def sweep(self, now: float) -> None:
        self.prune_queue(now - QUEUE)
        with self.write() as c:
            c.execute(t.idempotency.delete().where(t.idempotency.c.created_at < now - KEYS))
        if self.keep_days is not None:
            self.remove_folders(now - self.keep_days * DAY)

    def remove_folders(self, before: float) -> None:
        """Those of jobs that ended before a moment, without a trainer, that no open job names."""
        with self.read() as c:
            ended = sa.select(t.jobs.c.id).where(
                t.jobs.c.state.in_(FINAL), t.jobs.c.finished_at < before
            )
            old = set(c.execute(ended).scalars())
            running = sa.select(t.attempts.c.job_id).where(t.attempts.c.ended_at.is_(None))
            old -= set(c.execute(running).scalars())
        for folder in (self.root / "jobs").iterdir():
            if folder.name in old and not self._stopping.is_set() and self._given_up(folder.name):
                remove_tree(folder)

    def _given_up(self, job_id: str) -> bool:
        """Mark the job as one without files, unless an open one names it; `keeps_files` looks for
        the mark. Rows go before the folder: what is offered for download is there."""
        with self.write() as c:
            ours = t.jobs.c.id == job_id
            marked = c.execute(sa.select(t.jobs.c.removed_at).where(ours).with_for_update())
            if marked.scalar() is not None:  # and the removal was broken off
                return True
            open_jobs = sa.select(t.jobs.c.settings).where(t.jobs.c.state.not_in(FINAL))
            if job_id in json.dumps(list(c.execute(open_jobs).scalars())):
                return False
            c.execute(t.jobs.update().where(ours).values(removed_at=time.time()))
            c.execute(t.files.delete().where(t.files.c.job_id == job_id))
            c.execute(t.checkpoints.delete().where(t.checkpoints.c.job_id == job_id))
            said = f"its files are removed: they are kept for {self.keep_days:g} days"
            write_notes(c, job_id, [Note(said)])
        return True


def keeps_files(c: sa.Connection, settings: Mapping[str, Any]) -> None:
    """Raises `UserError` where settings name a job whose folder is given up, and keeps one that is
    not from that until the transaction ends."""
    named = set(JOB.findall(json.dumps(settings)))
    chosen = sa.select(t.jobs.c.id, t.jobs.c.removed_at).where(t.jobs.c.id.in_(named))
    for row in c.execute(chosen.order_by(t.jobs.c.id).with_for_update(read=True)):
        if row.removed_at is not None:
            raise UserError(f"the files of the job {row.id} are removed: name another one.")
