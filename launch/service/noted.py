"""Events and checkpoints of a job, written in the transaction that changes the job's row."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from launch.service import tables as t
from launch.service.watch import News


class Note(NamedTuple):
    """One event for the job's list."""

    message: str
    level: str = "info"
    type: str = "message"
    data: Mapping[str, Any] = {}
    at: float | None = None


def write_notes(c: sa.Connection, job_id: str, notes: Sequence[Note]) -> None:
    """Within the transaction that changed the job's row: so its events appear in their order."""
    noted = [
        {
            "job_id": job_id,
            "created_at": time.time() if one.at is None else one.at,
            "level": one.level,
            "type": one.type,
            "message": one.message,
            "data": dict(one.data),
        }
        for one in notes
    ]
    if noted:
        c.execute(t.events.insert(), noted)


def write_checkpoints(c: sa.Connection, job_id: str, news: News) -> bool:
    """Those that are in the folder, and no others; whether there are new ones."""
    table = t.checkpoints
    held = set(c.execute(sa.select(table.c.step).where(table.c.job_id == job_id)).scalars())
    gone, new = held - set(news.saved), set(news.saved) - held
    if gone:
        c.execute(table.delete().where(table.c.job_id == job_id, table.c.step.in_(gone)))
    for step in sorted(new):
        metrics = _figures(c, job_id, step)
        values = {"job_id": job_id, "step": step, "created_at": time.time(), "metrics": metrics}
        c.execute(table.insert().values(**values))
    return bool(new)


def _figures(c: sa.Connection, job_id: str, step: int) -> dict[str, Any]:
    """What was measured at a step, from the newest events."""
    table = t.events
    chosen = sa.select(table.c.data).where(table.c.job_id == job_id, table.c.type == "metrics")
    for data in c.execute(chosen.order_by(table.c.seq.desc()).limit(200)).scalars():
        if data.get("step") == step:
            return {name: value for name, value in data.items() if name != "step"}
    return {}
