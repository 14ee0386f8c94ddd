"""A moment in; what is older than it is to be kept removed from the queue, the tables and the root.

Run folders stay for ever unless the operator says for how many days; their jobs and events stay
in the tables either way.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from core.storage import remove_tree
from launch.service import tables as t
from launch.service.database import Database
from launch.service.noted import Note
from launch.service.states import FINAL
from launch.service.store import Jobs

DAY = 24 * 3600.0
QUEUE = 7 * DAY
"""Seconds for which the queue keeps work that is done, for whoever looks into it."""
KEYS = 30 * DAY
"""Seconds for which an idempotency key makes no second job."""
EVERY = 3600.0

log = logging.getLogger("diffdoctor.service")


class Retention:
    """Removes in a thread of its own, at the start and every hour."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        root: Path,
        prune_queue: Callable[[float], None],
        keep_days: float | None = None,
    ):
        self.read, self.write = database.read, database.write
        self.jobs, self.root, self.keep_days = jobs, root, keep_days
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
            open_jobs = sa.select(t.jobs.c.settings).where(t.jobs.c.state.not_in(FINAL))
            named = json.dumps(list(c.execute(open_jobs).scalars()))
        for folder in (self.root / "jobs").iterdir():
            if folder.name in old and folder.name not in named and not self._stopping.is_set():
                self._remove(folder)

    def _remove(self, folder: Path) -> None:
        """Rows first: what is offered for download is there."""
        with self.write() as c:
            c.execute(t.files.delete().where(t.files.c.job_id == folder.name))
            c.execute(t.checkpoints.delete().where(t.checkpoints.c.job_id == folder.name))
        remove_tree(folder)
        said = f"its files were removed: they are kept for {self.keep_days:g} days"
        self.jobs.note(folder.name, [Note(said)])
