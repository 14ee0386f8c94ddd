"""/v1/fine_tuning/jobs: jobs made, looked at, and asked to stop or go on."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from launch.folder import LOG
from launch.methods import METHODS
from launch.service import shapes
from launch.service.checker import Fault
from launch.service.database import Row, event_number
from launch.service.dispatch import Work
from launch.service.faults import Missing
from launch.service.guard import READ, WRITE, Route, caller_of
from launch.service.noted import Note
from launch.service.requests import Asked
from launch.service.service import Service
from launch.service.states import FINAL, Event, State
from launch.service.store import new_id, request_digest
from launch.service.tokens import Caller

JOBS = "/v1/fine_tuning/jobs"
AT_ONCE = 8
"""Requests whose settings are looked at: the threads for all else stay free."""
ALIVE = 15.0
"""Seconds of silence after which a stream says that it is still there."""
PART = 100
"""Events that a stream reads at once."""
TAIL = 256 << 10
SAID = {name: {"type": "string"} for name in ("id", "event", "data")}
STREAM = {
    "text/event-stream": {
        "schema": {"type": "object", "properties": SAID, "required": ["event", "data"]}
    }
}
"""Of one event; `data` is JSON, and `[DONE]` at the end."""


def service_of(request: Request) -> Service:
    return request.app.state.service


Who = Annotated[Caller, Depends(caller_of)]
House = Annotated[Service, Depends(service_of)]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=128)]
Key = Annotated[str | None, Header(min_length=1, max_length=255)]
_creating = CapacityLimiter(AT_ONCE)


async def create_job(
    body: shapes.CreateJob, who: Who, house: House, idempotency_key: Key = None
) -> Any:
    """Make a job, or with `dry_run` only say what it would be.

    With an `Idempotency-Key` the same request makes one job, however often it comes.
    """
    made = await to_thread.run_sync(
        lambda: create(house, who.owner, body, idempotency_key), limiter=_creating
    )
    return Response(made, media_type="application/json")


def create(house: Service, owner: str, body: shapes.CreateJob, key: str | None) -> str:
    """The job's shape as JSON; in a thread, as the settings are checked by another process."""
    asked, digest = asked_for(body), request_digest(body.model_dump(mode="json"))
    former = None if body.dry_run else house.jobs.keyed(owner, key, digest)
    if former is not None:
        return shaped(house, former)
    job_id = new_id("ftjob")
    resolved = house.requests.resolve(asked, owner, house.supervisor.folder(job_id))
    if body.dry_run:
        return shapes.Resolution(
            method={asked.method: dict(asked.settings), "type": asked.method},
            hyperparameters=resolved.shown,
            estimate=house.requests.estimate(asked, resolved),
        ).model_dump_json()
    total = METHODS[asked.method].total
    row, new = house.jobs.create_job(
        {
            "id": job_id,
            "owner": owner,
            "created_at": time.time(),
            "method": asked.method,
            "model": asked.model or "",
            "training_file": asked.training_file,
            "validation_file": asked.validation_file,
            "suffix": body.suffix,
            "seed": resolved.settings.get("seed", 0),
            "metadata": body.metadata or {},
            "asked": dict(asked.settings),
            "shown": resolved.shown,
            "settings": resolved.settings,
            "uses": resolved.uses,
            "total": resolved.settings.get(total) if total else None,
        },
        key,
        digest,
    )
    if new:
        house.dispatcher.put(Work("check", row["id"], 0))
    return shaped(house, row)


def asked_for(body: shapes.CreateJob) -> Asked:
    """The request without its wrapping; raises `Fault`."""
    kind = body.method.get("type")
    if not isinstance(kind, str):
        known = ", ".join(METHODS)
        raise Fault(f"method.type is missing; methods are {known}.", "method.type")
    settings = body.method.get(kind, {})
    strange = sorted(set(body.method) - {"type", kind})
    if strange or not isinstance(settings, dict):
        told = f'method is {{"type": "{kind[:80]}", "{kind[:80]}": {{settings}}}}'
        raise Fault(f"{told}; leave out {strange or 'what is no settings'}.", "method")
    if body.hyperparameters:
        raise Fault(f"give hyperparameters within method.{kind[:80]}.", "hyperparameters")
    files = body.training_file or None, body.validation_file or None
    return Asked(kind, settings, body.model or None, *files, body.seed)


def shaped(house: Service, row: Row) -> str:
    shape = shapes.job_shape(row, house.files.of_jobs([row["id"]])[row["id"]])
    return shapes.JobShape.model_validate(shape).model_dump_json()


def found(house: Service, who: Caller, job_id: str) -> Row:
    row = house.jobs.job(job_id, who.owner)
    if row is None:
        raise Missing("job", job_id)
    return row


def list_jobs(who: Who, house: House, after: After = None, limit: Limit = 20) -> Any:
    """Your jobs, the newest first."""
    page = house.jobs.jobs(who.owner, after, limit)
    results = house.files.of_jobs([row["id"] for row in page.rows])
    return shapes.page_of(page, lambda row: shapes.job_shape(row, results[row["id"]]))


def retrieve_job(job_id: str, who: Who, house: House) -> Any:
    return Response(shaped(house, found(house, who, job_id)), media_type="application/json")


def cancel_job(job_id: str, who: Who, house: House) -> Any:
    """End a job for good; its trainer is told, and its run folder stays as it is."""
    return changed(house, who, job_id, Event.CANCEL, "cancelled")


def pause_job(job_id: str, who: Who, house: House) -> Any:
    """Have a job save and stop; `pausing` until it has."""
    return changed(house, who, job_id, Event.PAUSE, "asked to pause")


def resume_job(job_id: str, who: Who, house: House) -> Any:
    """Queue a paused job again; it goes on where it saved."""
    made = changed(house, who, job_id, Event.RESUME, "asked to resume")
    row = found(house, who, job_id)
    if row["state"] == State.QUEUED:
        house.dispatcher.put(Work("start", job_id, row["attempt"]))
    return made


def run_folder(house: Service, row: Row) -> Path:
    """Where the job's program works."""
    folder = house.supervisor.folder(row["id"])
    return folder / METHODS[row["method"]].place if row["method"] in METHODS else folder


def changed(house: Service, who: Caller, job_id: str, event: Event, told: str) -> Response:
    found(house, who, job_id)
    row = house.supervisor.change(job_id, event, notes=[Note(told)])
    return Response(shaped(house, row), media_type="application/json")


async def list_events(
    job_id: str,
    request: Request,
    who: Who,
    house: House,
    after: After = None,
    limit: Limit = 20,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header(max_length=128)] = None,
) -> Any:
    """What happened to a job, the newest first.

    With `stream=true` (or `Accept: text/event-stream`) from the oldest on as server-sent events,
    those after `Last-Event-ID` or `after`, until the job has ended.
    """
    await run_in_threadpool(found, house, who, job_id)
    if stream or "text/event-stream" in request.headers.get("accept", ""):
        events = event_stream(house, job_id, event_number(last_event_id or after or ""))
        return StreamingResponse(events, media_type="text/event-stream")
    page = await run_in_threadpool(house.jobs.events, job_id, after, limit)
    return shapes.page_of(page, shapes.event_shape)


async def event_stream(house: Service, job_id: str, last: int) -> AsyncIterator[str]:
    """Server-sent events, until the job is final and all has been said."""
    heard = house.bell.listen(job_id)
    try:
        while not house.stopping:
            heard.clear()
            final, rows = await run_in_threadpool(news, house, job_id, last)
            for one in rows:
                last = one["seq"]
                shape = json.dumps(shapes.event_shape(one))
                yield f"id: ftevent-{last}\nevent: {one['type']}\ndata: {shape}\n\n"
            if len(rows) == PART:
                continue
            if final:
                yield "event: done\ndata: [DONE]\n\n"
                return
            if not await _rung(heard):
                yield ": still here\n\n"
    finally:
        house.bell.leave(job_id, heard)


def news(house: Service, job_id: str, last: int) -> tuple[bool, list[Row]]:
    """Whether the job is final (or gone), then events after a number: a final job tells no more."""
    row = house.jobs.job(job_id)
    return row is None or row["state"] in FINAL, house.jobs.events_since(job_id, last, PART)


async def _rung(heard: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(heard.wait(), ALIVE)
    except TimeoutError:
        return False
    return True


def list_checkpoints(
    job_id: str, who: Who, house: House, after: After = None, limit: Limit = 10
) -> Any:
    """Those that are kept, the newest first."""
    job = found(house, who, job_id)
    before = None if after is None else checkpoint_step(job_id, after)
    page = house.jobs.checkpoints(job_id, before, limit)
    return shapes.page_of(page, lambda row: shapes.checkpoint_shape(row, job))


def checkpoint_step(job_id: str, name: str) -> int:
    """The step of a checkpoint's id; 0, after which nothing comes, for what is none of the job."""
    step = name.removeprefix(shapes.checkpoint_id(job_id, 0)[:-1])
    return int(step) if step.isascii() and step.isdigit() and len(step) < 10 else 0


def read_log(
    job_id: str, who: Who, house: House, after: Annotated[int, Query(ge=0, lt=2**53)] = 0
) -> Any:
    """What the program printed, from a place on (at most 256 KiB at a time); 0: its end."""
    row = found(house, who, job_id)
    path = house.supervisor.folder(row["id"]) / LOG
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            start = min(after, size) if after else max(0, size - TAIL)
            stream.seek(start)
            content = stream.read(TAIL)
    except FileNotFoundError:
        return {"text": "", "next": 0}
    return {"text": content.decode(errors="replace"), "next": start + len(content)}


ROUTES = [
    Route("POST", JOBS, create_job, WRITE, {"response_model": shapes.JobShape | shapes.Resolution}),
    Route("GET", JOBS, list_jobs, READ, {"response_model": shapes.Jobs}),
    Route("GET", f"{JOBS}/{{job_id}}", retrieve_job, READ, {"response_model": shapes.JobShape}),
    *(
        Route("POST", f"{JOBS}/{{job_id}}/{name}", act, WRITE, {"response_model": shapes.JobShape})
        for name, act in (("cancel", cancel_job), ("pause", pause_job), ("resume", resume_job))
    ),
    Route("GET", f"{JOBS}/{{job_id}}/events", list_events, READ,
          {"response_model": shapes.Events, "responses": {200: {"content": STREAM}}}),
    Route("GET", f"{JOBS}/{{job_id}}/checkpoints", list_checkpoints, READ,
          {"response_model": shapes.Checkpoints}),
    Route("GET", f"{JOBS}/{{job_id}}/log", read_log, READ, {"response_model": shapes.Log}),
]  # fmt: skip
