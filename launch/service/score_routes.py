"""/v1/score: an image in, a detector's map and figures out."""

import asyncio
import base64
import binascii
import math
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response

from core.errors import UserError
from launch.service import shapes
from launch.service.faults import Missing
from launch.service.guard import Policy, Route, error_body
from launch.service.jobs_routes import House, Who
from launch.service.scoring import BYTES, Full

FORM = shapes.form(
    ["file", "model"],
    file={"type": "string", "format": "binary"},
    model={"type": "string"},
    threshold={"type": "number", "default": 0.5},
)
FIELDS = {"file", "model", "threshold"}
WAIT = "2"
"""Seconds after which there may be room."""
FIGURES = "verdict", "max", "mean", "area", "threshold"


class ScoreShape(BaseModel):
    """What a detector says of an image."""

    object: Literal["score"]
    model: str
    threshold: float
    verdict: Literal["artifact", "sound"]
    max: float
    mean: float
    area: float
    """Share of the pixels at or above the threshold."""
    width: int
    height: int
    map: str
    """PNG of one channel, 255 where the detector is sure of an artifact; base64."""


async def score(request: Request, who: Who, house: House) -> Any:
    """An image (PNG, JPEG, WebP) and a detector's name, of `GET /v1/models`, in; map and figures
    out. With `Accept: image/png` the map itself, the figures in headers; 429 where many wait."""
    try:
        with house.scoring.place():
            async with request.form(max_files=1, max_fields=2, max_part_size=1024) as form:
                if not set(form) <= FIELDS or len(form.multi_items()) != len(form):
                    raise UserError("a score takes one 'file', a 'model' and a 'threshold'.")
                name, threshold = str(form.get("model", "")), limit(form.get("threshold", "0.5"))
                folder = await run_in_threadpool(house.requests.model, name, who.owner)
                if folder is None:
                    raise Missing("model", name)
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise UserError("a score needs an image: send it as 'file'.")
                content = await file.read()
            answer = house.scoring.ask(folder, content, threshold)
            found = await asyncio.wrap_future(answer)
    except Full:
        message = "many images wait already; try again in a moment."
        body = error_body(message, "rate_limit_error", None, "busy")
        return JSONResponse(body, 429, {"retry-after": WAIT})
    found = {"object": "score", "model": name, "threshold": threshold, **found}
    if request.headers.get("accept", "").partition(";")[0].strip() == "image/png":
        headers = {f"x-diffdoctor-{one}": str(found[one]) for one in FIGURES}
        return Response(decoded(found["map"]), media_type="image/png", headers=headers)
    return found


def limit(said: Any) -> float:
    try:
        value = float(str(said))
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise UserError("threshold is a number between 0 and 1.")
    return value


def decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise RuntimeError("the child made no sound map") from error


ROUTES = [
    Route("POST", "/v1/score", score, Policy("write", body=BYTES + (1 << 16)),
          {"response_model": ScoreShape, "openapi_extra": FORM,
           "responses": {200: {"content": {"image/png": {}}}}}),
]  # fmt: skip
