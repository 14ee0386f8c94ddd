"""An attempt's two ends: what its trainer is to run, and what its outcome means."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.folder import Outcome, Program, killed
from launch.methods import Method
from launch.service.database import Row
from launch.service.states import Event

TOLD = {
    Event.FINISHED: "attempt {number} has finished",
    Event.STOPPED: "attempt {number} has stopped",
    Event.BROKE: "attempt {number} failed: {message}",
    Event.VANISHED: "attempt {number} was lost: {message}",
}
LEVELS = {
    Event.FINISHED: "info",
    Event.STOPPED: "info",
    Event.BROKE: "error",
    Event.VANISHED: "warn",
}


def judged(outcome: Outcome, proof: Path) -> tuple[Event, dict[str, Any] | None]:
    """What an outcome means; an exit code is not believed without what it should have left.

    The error is the job's, should this have been the last attempt.
    """
    if outcome.stopped:
        message = "it was stopped again and again before it had saved anything new"
        return Event.STOPPED, {"code": "trainer_lost", "message": message, "param": None}
    if killed(outcome.code):
        return Event.VANISHED, {"code": "trainer_lost", "message": outcome.error, "param": None}
    if outcome.code == 0 and proof.is_file():
        return Event.FINISHED, None
    if outcome.code == 0:
        message = f"the program ended as if all were well, but made no {proof.name}"
        return Event.BROKE, {"code": "no_result", "message": message, "param": None}
    reason = outcome.error or f"it ended with exit code {outcome.code}"
    return Event.BROKE, {"code": "program_failed", "message": reason, "param": None}


def programs(job: Row, method: Method, folder: Path, layout: Mapping[str, Any]) -> list[Program]:
    """What a trainer is to run, one after the other; `layout` is of the first one's processes."""
    several = dict(layout) if method.several else {}
    first = Program(method.module, list(method.command), job["settings"], several)
    if not method.then:
        return [first]
    words = [word.format(out=folder) for word in method.then]
    return [first, Program(method.module, words, {})]
