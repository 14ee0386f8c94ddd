"""Rows of the tables in; what goes over the wire out, in the shapes of OpenAI's fine-tuning API."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from launch.service.database import Page, Row
from launch.service.states import FINAL, State

PURPOSES = ("fine-tune", "user_data")
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]
Name = Annotated[str, StringConstraints(max_length=256)]
DEEPEST = 32
"""Levels of lists and objects in one another; what writes JSON gives up at some hundreds."""


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    """JSON can spell halves of characters, which nothing can write down, and any depth."""
    if _deeper(values, DEEPEST):
        raise ValueError(f"it has more than {DEEPEST} levels of lists and objects")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text in it holds half a character") from error
    return values


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inner)


Settings = Annotated[dict[str, Any], AfterValidator(_whole)]


class Request(BaseModel):
    """What comes in: unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CreateJob(Request):
    """A job to be done. `method` is {"type": NAME, NAME: {settings}}; see GET /v1/methods."""

    method: Settings
    """{"type": "pixel_reward", "pixel_reward": {"detector": "file-...", "steps": 200}}"""
    model: Name | None = None
    training_file: Name | None = None
    validation_file: Name | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    suffix: Annotated[str, StringConstraints(max_length=64)] | None = None
    metadata: Metadata | None = None
    hyperparameters: Settings | None = None
    """Of older clients; the settings stand in `method`."""
    integrations: None = None
    dry_run: bool = False
    """Only say what would run and, of a treatment, what memory it would take."""


class ErrorShape(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorShape


class JobError(BaseModel):
    code: str
    message: str
    param: str | None


class JobShape(BaseModel):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    """Names what the job made, in a later job."""
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    """All settings, in the caller's words."""
    status: str
    pausing: bool
    """It was asked to pause, and is still saving."""
    error: JobError | None
    training_file: str
    validation_file: str | None
    result_files: list[str]
    seed: int
    trained_tokens: None = None
    organization_id: str
    estimated_finish: int | None
    metadata: dict[str, str]
    user_provided_suffix: str | None
    integrations: list[Any] = []
    step: int | None
    steps: int | None
    attempt: int


class Resolution(BaseModel):
    """The answer to a dry run."""

    object: Literal["fine_tuning.job.dry_run"] = "fine_tuning.job.dry_run"
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    estimate: dict[str, Any] | None
    """Bytes and operations of one micro-batch, where the method can count them."""


class EventShape(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any]


class CheckpointShape(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, Any]
    fine_tuning_job_id: str


class FileShape(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    sha256: str


class Deleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool


class ModelShape(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class MethodShape(BaseModel):
    id: str
    object: Literal["method"] = "method"
    description: str
    inputs: dict[str, str]
    """Settings that name files, models or jobs, and what those are to be."""
    training_file: str | None
    validation_file: str | None
    model: str | None
    needs_training_file: bool
    wishes: list[str]
    """What may be asked of a running job: POST .../jobs/ID/sample, .../save."""


class Log(BaseModel):
    object: Literal["log"] = "log"
    text: str
    next: int
    """The place to go on reading from."""


class _Listed(BaseModel):
    object: Literal["list"] = "list"
    has_more: bool
    first_id: str | None
    last_id: str | None


class Jobs(_Listed):
    data: list[JobShape]


class Events(_Listed):
    data: list[EventShape]


class Checkpoints(_Listed):
    data: list[CheckpointShape]


class Files(_Listed):
    data: list[FileShape]


class Models(_Listed):
    data: list[ModelShape]


class Methods(_Listed):
    data: list[MethodShape]


def listed(data: list[Any], more: bool = False) -> dict[str, Any]:
    """A list as OpenAI's clients page through it: `after` is the last id."""
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": more, "first_id": ends[0], "last_id": ends[1]}


def job_shape(row: Row, results: list[str]) -> dict[str, Any]:
    done = row["state"] == State.SUCCEEDED
    finish = row["finish_at"] if row["state"] == State.RUNNING else None
    return {
        "id": row["id"],
        "created_at": int(row["created_at"]),
        "finished_at": _seconds(row["finished_at"] if row["state"] in FINAL else None),
        "model": row["model"],
        "fine_tuned_model": model_name(row) if done else None,
        "method": {"type": row["method"], row["method"]: row["asked"]},
        "hyperparameters": row["shown"],
        "status": row["state"],
        "pausing": row["pausing"],
        "error": row["error"],
        "training_file": row["training_file"] or "",
        "validation_file": row["validation_file"],
        "result_files": results,
        "seed": row["seed"],
        "organization_id": row["owner"],
        "estimated_finish": _seconds(finish),
        "metadata": row["metadata"],
        "user_provided_suffix": row["suffix"],
        "step": row["step"],
        "steps": row["total"],
        "attempt": row["attempt"],
    }


def event_shape(row: Row) -> dict[str, Any]:
    return {
        "id": f"ftevent-{row['seq']}",
        "object": "fine_tuning.job.event",
        "created_at": int(row["created_at"]),
        "level": row["level"],
        "type": row["type"],
        "message": row["message"],
        "data": row["data"],
    }


def checkpoint_shape(row: Row, job: Row) -> dict[str, Any]:
    return {
        "id": checkpoint_id(job["id"], row["step"]),
        "created_at": int(row["created_at"]),
        "fine_tuned_model_checkpoint": f"{model_name(job)}:step-{row['step']}",
        "step_number": row["step"],
        "metrics": row["metrics"],
        "fine_tuning_job_id": job["id"],
    }


def checkpoint_id(job_id: str, step: int) -> str:
    return f"ftckpt-{job_id.removeprefix('ftjob-')}-{step}"


def model_name(row: Row) -> str:
    """By which a later job names what this one made; only its end is read."""
    return ":".join(filter(None, ("ft", row["method"], row["suffix"], row["id"])))


def file_shape(row: Row) -> dict[str, Any]:
    names = ("id", "bytes", "filename", "purpose", "sha256")
    return {**{name: row[name] for name in names}, "created_at": int(row["created_at"])}


def page_of(page: Page, shape: Any) -> dict[str, Any]:
    return listed([shape(row) for row in page.rows], page.more)


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)


Answers = Mapping[int | str, dict[str, Any]]
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 413, 422, 429, 503)
}


def form(required: list[str], **fields: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI says of a multipart body that the route reads by itself."""
    schema = {"type": "object", "required": required, "properties": fields}
    body = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    return {"requestBody": body}
