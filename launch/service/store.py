"""Jobs in the database, which is the truth about them.

Every change of a job is one short transaction: its standing is read, `states.after` says what
follows, and the row is changed only if the standing is still the one that was read.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from launch.service import tables as t
from launch.service.database import Database, Page, Row, first, page, rows
from launch.service.noted import Note, write_checkpoints, write_notes
from launch.service.retention import keeps_files
from launch.service.states import FINAL, Event, Refused, Standing, State, after
from launch.service.watch import News

STANDING = Standing._fields


class KeyReused(Exception):
    """An idempotency key came again with another request."""


class Jobs:
    """Jobs with their attempts, events and checkpoints. Safe to use from many threads."""

    def __init__(self, database: Database):
        self.read, self.write = database.read, database.write

    def create_job(self, job: Row, key: str | None = None, request: str = "") -> tuple[Row, bool]:
        """The new job and True; of a key that was used before, its job and False.

        Raises `KeyReused` where the key came with another request, and `UserError` where the files
        of a job that it names are being removed.
        """
        try:
            with self.write() as c:
                former = self._keyed(c, job["owner"], key, request)
                if former is not None:
                    return former, False
                keeps_files(c, job["settings"])
                c.execute(t.jobs.insert().values(**job, **Standing()._asdict(), events_read=0))
                if key is not None:
                    values = {"owner": job["owner"], "key": key, "request": request}
                    c.execute(
                        t.idempotency.insert().values(
                            **values, job_id=job["id"], created_at=time.time()
                        )
                    )
                write_notes(c, job["id"], [Note("the job is created; its files are being checked")])
                return _job(c, job["id"]), True
        except IntegrityError:  # another with the same key was faster by a moment
            with self.read() as c:
                former = self._keyed(c, job["owner"], key, request)
            if former is None:
                raise
            return former, False

    def keyed(self, owner: str, key: str | None, request: str) -> Row | None:
        """The job that an idempotency key made before."""
        with self.read() as c:
            return self._keyed(c, owner, key, request)

    def _keyed(self, c: sa.Connection, owner: str, key: str | None, request: str) -> Row | None:
        if key is None:
            return None
        table = t.idempotency
        query = sa.select(table).where(table.c.owner == owner, table.c.key == key)
        held = first(c.execute(query))
        if held is None:
            return None
        if held["request"] != request:
            raise KeyReused
        return _job(c, held["job_id"])

    def job(self, job_id: str, owner: str | None = None) -> Row | None:
        """None where there is none, or none of this owner's."""
        with self.read() as c:
            query = sa.select(t.jobs).where(t.jobs.c.id == job_id)
            row = first(c.execute(query))
        return row if row is not None and owner in (None, row["owner"]) else None

    def jobs(self, owner: str, after: str | None, limit: int) -> Page:
        """Newest first."""
        with self.read() as c:
            return page(c, t.jobs, t.jobs.c.owner == owner, after, limit)

    def waiting(self, state: State) -> list[tuple[str, int]]:
        """(id, attempt) of all jobs in a state, the oldest first."""
        query = sa.select(t.jobs.c.id, t.jobs.c.attempt).where(t.jobs.c.state == state)
        with self.read() as c:
            return [(row.id, row.attempt) for row in c.execute(query.order_by(t.jobs.c.seq))]

    def counts(self) -> dict[str, int]:
        """How many jobs are in which state; where there is none, nothing is said."""
        query = sa.select(t.jobs.c.state, sa.func.count().label("number")).group_by(t.jobs.c.state)
        with self.read() as c:
            return {row.state: row.number for row in c.execute(query)}

    def change(
        self,
        job_id: str,
        event: Event,
        attempt: int | None = None,
        notes: Sequence[Note] = (),
        error: Mapping[str, Any] | None = None,
        ended: Mapping[str, Any] | None = None,
        results: Sequence[Row] = (),
    ) -> Row:
        """Let an event happen to a job, with all that belongs to it, or raise `Refused`.

        `ended`: the outcome of the attempt, which gives its slot free, also where the report is
        stale. `results` are offered for download if the job now has succeeded.
        """
        while True:
            with self.write() as c:
                if ended is not None and attempt is not None:
                    _end(c, job_id, attempt, ended)
                row = _job(c, job_id)
                before = standing(row)
                try:
                    now = after(before, event, attempt)
                except Refused:
                    if ended is not None:
                        return row  # the slot is given free all the same
                    raise
                if now == before:
                    return row
                if _exchange(c, job_id, before, now, error):
                    if now.state is State.SUCCEEDED and results:
                        c.execute(t.files.insert(), [dict(one) for one in results])
                    write_notes(c, job_id, notes)
                    return _job(c, job_id)

    def begin(
        self, job_id: str, attempt: int, slots: int, launcher: str, notes: Sequence[Note] = ()
    ) -> int | None:
        """Give the job a slot and let it run; the slot, or None where all are taken.

        Raises `Refused` where the job does not wait for this attempt any more.
        """
        with self.write() as c:
            c.execute(sa.select(t.house.c.id).with_for_update())  # one chooses at a time
            row = _job(c, job_id)
            now = after(standing(row), Event.BEGUN, attempt)
            query = sa.select(t.attempts.c.slot).where(t.attempts.c.ended_at.is_(None))
            free = sorted(set(range(slots)) - set(c.execute(query).scalars()))
            if not free:
                return None
            if not _exchange(c, job_id, standing(row), now):
                raise Refused("the job has just changed.")
            c.execute(
                t.attempts.insert().values(
                    job_id=job_id,
                    number=attempt,
                    launcher=launcher,
                    slot=free[0],
                    begun_at=time.time(),
                )
            )
            write_notes(c, job_id, notes)
            return free[0]

    def submitted(self, job_id: str, attempt: int, handle: str) -> None:
        self._attempt(job_id, attempt, handle=handle)

    def asked_to_stop(self, job_id: str, attempt: int) -> None:
        self._attempt(job_id, attempt, stop_at=time.time())

    def _attempt(self, job_id: str, attempt: int, **values: Any) -> None:
        table = t.attempts
        chosen = table.update().where(table.c.job_id == job_id, table.c.number == attempt)
        with self.write() as c:
            c.execute(chosen.values(**values))

    def live(self) -> list[tuple[Row, Row]]:
        """Each attempt that holds a slot, with its job."""
        found = []
        with self.read() as c:
            query = sa.select(t.attempts).where(t.attempts.c.ended_at.is_(None))
            for attempt in rows(c.execute(query)):
                found.append((attempt, _job(c, attempt["job_id"])))
        return found

    def attempt(self, job_id: str, number: int) -> Row | None:
        table = t.attempts
        query = sa.select(table).where(table.c.job_id == job_id, table.c.number == number)
        with self.read() as c:
            return first(c.execute(query))

    # News

    def record(self, job_id: str, attempt: int, news: News) -> bool:
        """What a run folder newly says, once: the cursors move in the same transaction.

        False, and nothing is kept, where the attempt is not the present one of a running job.
        """
        with self.write() as c:
            chosen = (
                t.jobs.c.id == job_id,
                t.jobs.c.attempt == attempt,
                t.jobs.c.state == State.RUNNING,
                t.jobs.c.events_read == news.events_from,
            )
            values: dict[str, Any] = {"events_read": news.events_read, "step": news.step}
            if news.pace is not None and news.step is not None:
                values["finish_at"] = news.at + news.pace * (t.jobs.c.total - news.step)
            if not c.execute(t.jobs.update().where(*chosen).values(**values)).rowcount:
                return False
            write_notes(c, job_id, [Note(**one) for one in news.notes])
            new = write_checkpoints(c, job_id, news)
            if new:
                advanced = t.jobs.update().where(t.jobs.c.id == job_id, t.jobs.c.attempt == attempt)
                c.execute(advanced.values(silent=0))  # states.Event.ADVANCED
            return True

    def note(self, job_id: str, notes: Sequence[Note]) -> None:
        with self.write() as c:
            c.execute(sa.select(t.jobs.c.id).where(t.jobs.c.id == job_id).with_for_update())
            write_notes(c, job_id, notes)

    def events(self, job_id: str, after: str | None, limit: int) -> Page:
        """Newest first."""
        with self.read() as c:
            return page(c, t.events, t.events.c.job_id == job_id, after, limit)

    def events_since(self, job_id: str, seq: int, limit: int) -> list[Row]:
        """Oldest first, after a number."""
        table = t.events
        chosen = sa.select(table).where(table.c.job_id == job_id, table.c.seq > seq)
        with self.read() as c:
            query = chosen.order_by(table.c.seq).limit(limit)
            return rows(c.execute(query))

    def figures(self, job_id: str, limit: int) -> tuple[int, list[Row]]:
        """The number of the newest event, and the figures of the newest steps, oldest first."""
        table = t.events
        ours = table.c.job_id == job_id
        with self.read() as c:
            newest = c.execute(sa.select(sa.func.max(table.c.seq)).where(ours)).scalar() or 0
            chosen = sa.select(table.c.data).where(ours, table.c.type == "metrics")
            found = c.execute(chosen.order_by(table.c.seq.desc()).limit(limit)).scalars().all()
        return newest, [dict(one) for one in reversed(found)]

    def checkpoints(self, job_id: str, before: int | None, limit: int) -> Page:
        """Newest first; those that are still in the run folder."""
        table = t.checkpoints
        query = sa.select(table).where(table.c.job_id == job_id)
        if before is not None:
            query = query.where(table.c.step < before)
        with self.read() as c:
            ordered = query.order_by(table.c.step.desc()).limit(limit + 1)
            found = rows(c.execute(ordered))
        return Page(found[:limit], len(found) > limit)


def standing(row: Row) -> Standing:
    return Standing(State(row["state"]), row["attempt"], row["silent"], row["pausing"])


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def request_digest(body: Any) -> str:
    """Of what a request says, whatever the order of its names."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _job(c: sa.Connection, job_id: str) -> Row:
    return rows(c.execute(sa.select(t.jobs).where(t.jobs.c.id == job_id)))[0]


def _exchange(
    c: sa.Connection,
    job_id: str,
    before: Standing,
    now: Standing,
    error: Mapping[str, Any] | None = None,
) -> bool:
    """Compare and set; False where another was faster."""
    same = [t.jobs.c[name] == getattr(before, name) for name in STANDING]
    values: dict[str, Any] = now._asdict()
    if now.state in FINAL:
        values |= {"finished_at": time.time(), "error": error}
    changed = c.execute(t.jobs.update().where(t.jobs.c.id == job_id, *same).values(**values))
    return changed.rowcount == 1


def _end(c: sa.Connection, job_id: str, attempt: int, outcome: Mapping[str, Any]) -> None:
    table = t.attempts
    chosen = (
        table.c.job_id == job_id,
        table.c.number == attempt,
        table.c.ended_at.is_(None),
    )
    c.execute(table.update().where(*chosen).values(ended_at=time.time(), outcome=dict(outcome)))
