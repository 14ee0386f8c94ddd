"""/v1/files: data in, results out."""

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from core.errors import UserError
from launch.service import shapes
from launch.service.faults import Missing
from launch.service.guard import READ, UPLOAD, WRITE, Route
from launch.service.jobs_routes import After, House, Who
from launch.service.uploads import Upload, receive

FORM = shapes.form(
    ["file", "purpose"],
    file={"type": "string", "format": "binary"},
    purpose={"type": "string", "enum": list(shapes.PURPOSES)},
)


async def create_file(request: Request, who: Who, house: House) -> Any:
    """Upload a file: prompts, or a .zip of a folder of images or of a store."""
    upload = await run_in_threadpool(Upload, house.files, who.owner)
    try:
        await receive(request.headers.get("content-type", ""), request.stream(), upload)
        purpose = upload.fields.get("purpose", b"").decode(errors="replace")
        if purpose not in shapes.PURPOSES:
            raise UserError(f"purpose is {' or '.join(shapes.PURPOSES)}.")
        assert upload.part is not None and upload.filename is not None  # `receive` saw to it
        row = await run_in_threadpool(
            house.files.keep, upload.part, who.owner, upload.filename, purpose
        )
    finally:
        await run_in_threadpool(upload.close)
    return shapes.file_shape(row)


def list_files(
    who: Who,
    house: House,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    order: Literal["desc"] = "desc",
) -> Any:
    """Your files and your jobs' results, the newest first."""
    return shapes.page_of(house.files.listed(who.owner, after, limit, purpose), shapes.file_shape)


def retrieve_file(file_id: str, who: Who, house: House) -> Any:
    row = house.files.get(file_id, who.owner)
    if row is None:
        raise Missing("file", file_id)
    return shapes.file_shape(row)


def file_content(file_id: str, who: Who, house: House) -> Any:
    """The bytes, always as a download."""
    row = house.files.get(file_id, who.owner)
    path = None if row is None else house.files.path(row)
    if row is None or path is None or not path.is_file():
        raise Missing("file", file_id)
    name = row["filename"].rpartition("/")[2]
    return FileResponse(path, media_type="application/octet-stream", filename=name)


def delete_file(file_id: str, who: Who, house: House) -> Any:
    """Not while a job that has not ended uses it."""
    if not house.files.delete(file_id, who.owner):
        raise Missing("file", file_id)
    return {"id": file_id, "deleted": True}


ROUTES = [
    Route("POST", "/v1/files", create_file, UPLOAD,
          {"response_model": shapes.FileShape, "openapi_extra": FORM}),
    Route("GET", "/v1/files", list_files, READ, {"response_model": shapes.Files}),
    Route("GET", "/v1/files/{file_id}", retrieve_file, READ,
          {"response_model": shapes.FileShape}),
    Route("GET", "/v1/files/{file_id}/content", file_content, READ,
          {"response_class": FileResponse}),
    Route("DELETE", "/v1/files/{file_id}", delete_file, WRITE,
          {"response_model": shapes.Deleted}),
]  # fmt: skip
