"""A job's standing and what happened to it in; its next standing out, or a refusal. Pure.

    validating_files -> queued -> running -> succeeded | failed
                          |  ^        |
                          v  |        v                 cancelled: from anything not final
                         paused <-----+

An attempt is one trainer on the run folder. Its number only grows, and what a trainer of a former
attempt reports is refused: it is the fencing token of everything that follows from a run.
"""

from enum import StrEnum
from typing import NamedTuple

LIMIT = 3
"""Attempts in a row that may end without a word before a job counts as failed."""


class State(StrEnum):
    """In OpenAI's words; `paused` is ours."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class Event(StrEnum):
    """What can happen to a job."""

    VALIDATED = "validated"
    INVALID = "invalid"
    BEGUN = "begun"
    """It has a slot; its trainer is about to be started."""
    ADVANCED = "advanced"
    """A new checkpoint."""
    FINISHED = "finished"
    """The trainer says so, and what it was to make is there."""
    BROKE = "broke"
    """The trainer says that the program failed."""
    STOPPED = "stopped"
    """The trainer says that the program saved and stopped."""
    VANISHED = "vanished"
    """The trainer is dead and said nothing."""
    UNSENT = "unsent"
    """It was never started: the service itself ended between giving it a slot and doing so."""
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


REPORTS = frozenset(
    {
        Event.BEGUN,
        Event.ADVANCED,
        Event.FINISHED,
        Event.BROKE,
        Event.STOPPED,
        Event.VANISHED,
        Event.UNSENT,
    }
)
"""Events of one attempt, which must be the present one."""


class Standing(NamedTuple):
    """All that decides what may happen to a job next."""

    state: State = State.VALIDATING
    attempt: int = 0
    """Number of the present attempt; 0 before the files are checked."""
    silent: int = 0
    """Attempts in a row that ended without result or progress."""
    pausing: bool = False
    """A running job was asked to save and stop."""


class Refused(Exception):
    """The event does not fit the job's state; the message says why, for a person."""


class Stale(Refused):
    """A report of a former attempt, or of one whose job has ended."""


def after(job: Standing, event: Event, attempt: int | None = None) -> Standing:
    """The standing after an event; raises `Refused`.

    What was asked before is asked for once: cancelling a cancelled job changes nothing.
    """
    if event in REPORTS:
        return _reported(job, event, attempt)
    if event is Event.CANCEL:
        return _cancelled(job)
    if event is Event.PAUSE:
        return _paused(job)
    if event is Event.RESUME:
        return _resumed(job)
    if job.state is not State.VALIDATING:
        raise Stale(f"the files of a {job.state} job were checked before.")
    if event is Event.INVALID:
        return job._replace(state=State.FAILED)
    return job._replace(state=State.QUEUED, attempt=1)


def _reported(job: Standing, event: Event, attempt: int | None) -> Standing:
    expected = State.QUEUED if event is Event.BEGUN else State.RUNNING
    if attempt != job.attempt or job.state is not expected:
        raise Stale(f"attempt {attempt} is not what the job ({job.state}, {job.attempt}) is at.")
    if event is Event.BEGUN:
        return job._replace(state=State.RUNNING)
    if event is Event.ADVANCED:
        return job._replace(silent=0)
    if event is Event.FINISHED:
        return job._replace(state=State.SUCCEEDED, pausing=False)
    if event is Event.BROKE:
        return job._replace(state=State.FAILED, pausing=False)
    if job.pausing:  # killed while it saved: its last checkpoint is where it pauses
        return job._replace(state=State.PAUSED, pausing=False)
    if event is Event.UNSENT:
        return _again(job, job.silent)
    if job.silent + 1 >= LIMIT:
        return job._replace(state=State.FAILED, silent=job.silent + 1)
    return _again(job, job.silent + 1)


def _cancelled(job: Standing) -> Standing:
    if job.state in FINAL - {State.CANCELLED}:
        raise Refused(f"the job has {job.state}: there is nothing to cancel.")
    return job._replace(state=State.CANCELLED, pausing=False)


def _paused(job: Standing) -> Standing:
    if job.state is State.RUNNING:
        return job._replace(pausing=True)
    if job.state in (State.QUEUED, State.PAUSED):
        return job._replace(state=State.PAUSED)
    if job.state is State.VALIDATING:
        raise Refused("the job's files are still being checked: pause it once it is queued.")
    raise Refused(f"the job is {job.state}: there is nothing to pause.")


def _resumed(job: Standing) -> Standing:
    if job.pausing:
        raise Refused("the job is still saving: resume it once it is paused.")
    if job.state is State.PAUSED:
        return _again(job, silent=0)
    if job.state in FINAL:
        raise Refused(f"the job is {job.state}: create a new one.")
    return job


def _again(job: Standing, silent: int) -> Standing:
    return job._replace(state=State.QUEUED, attempt=job.attempt + 1, silent=silent)
