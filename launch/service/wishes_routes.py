"""Pictures and checkpoints of running jobs: a wish in, a file in the run folder out."""

from typing import Any

from starlette.responses import Response

from core.wishes import ask
from launch.methods import METHODS
from launch.service import shapes
from launch.service.guard import WRITE, Route
from launch.service.jobs_routes import JOBS, House, Who, found, run_folder, shaped
from launch.service.noted import Note
from launch.service.service import Service
from launch.service.states import Refused, State
from launch.service.tokens import Caller


def sample_job(job_id: str, who: Who, house: House) -> Any:
    """Have a running job draw its pictures after the step it is in; what it computes stays."""
    return wished(house, who, job_id, "sample", "asked for pictures")


def save_job(job_id: str, who: Who, house: House) -> Any:
    """Have a running job save a checkpoint after the step it is in, and go on."""
    return wished(house, who, job_id, "save", "asked for a checkpoint")


def wished(house: Service, who: Caller, job_id: str, wish: str, told: str) -> Response:
    """A wish laid into the run folder, where it waits for the program's next look."""
    row = found(house, who, job_id)
    if wish not in METHODS[row["method"]].wishes:
        raise Refused(f"a {row['method']} job has nothing to {wish}.")
    if row["state"] != State.RUNNING or row["pausing"]:
        now = "pausing" if row["pausing"] else row["state"]
        raise Refused(f"the job is {now}: only one that runs can {wish}.")
    try:
        new = ask(run_folder(house, row), wish)
    except FileNotFoundError as error:
        raise Refused("the job's trainer is just being started: ask again.") from error
    if new:
        house.jobs.note(job_id, [Note(told)])
        house.bell.ring(job_id)
    return Response(shaped(house, row), media_type="application/json")


ROUTES = [
    Route("POST", f"{JOBS}/{{job_id}}/{name}", act, WRITE, {"response_model": shapes.JobShape})
    for name, act in (("sample", sample_job), ("save", save_job))
]
