"""Exceptions of any layer in; answers in OpenAI's error shape out."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy import exc
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from core.errors import UserError
from launch.service.checker import Closed, Fault, Unanswered
from launch.service.guard import BUSY, error_body
from launch.service.states import Refused
from launch.service.store import KeyReused

log = logging.getLogger("diffdoctor.service")


class Missing(Exception):
    """There is no such thing, or it is another owner's: which of the two is nobody's business."""

    def __init__(self, what: str, name: str):
        super().__init__(f"there is no {what} {name[:80]}.")


def answer(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse(error_body(message, kind, param, code), status)


def add_handlers(app: FastAPI) -> None:
    @app.exception_handler(Missing)
    def missing(request: Request, error: Missing) -> JSONResponse:
        return answer(404, str(error), "not_found")

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> JSONResponse:
        return answer(400, str(error), "invalid_state")  # clients ask again at a 409

    @app.exception_handler(KeyReused)
    def reused(request: Request, error: KeyReused) -> JSONResponse:
        told = "this Idempotency-Key was used for another request: choose a new one."
        return answer(422, told, "idempotency_key_reused")

    @app.exception_handler(UserError)
    def wrong(request: Request, error: UserError) -> JSONResponse:
        param = error.param if isinstance(error, Fault) else None
        return answer(400, str(error), "invalid_value", param)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        if fault["type"] == "json_invalid":
            place, why = fault["loc"][-1], fault["ctx"]["error"].lower()
            told = f"the body is no JSON ({why} at character {place}): mend it there."
            return answer(400, told, "invalid_value")
        param = ".".join(str(part) for part in fault["loc"][1:]) or None
        unknown = fault["type"] == "extra_forbidden"
        said = "there is no such name; leave it out" if unknown else fault["msg"]
        return answer(400, f"{param or 'the body'}: {said}.", "invalid_value", param)

    @app.exception_handler(HTTPException)
    def known(request: Request, error: HTTPException) -> JSONResponse:
        made = answer(error.status_code, str(error.detail), "http_error")
        made.headers.update(error.headers or {})
        return made

    @app.exception_handler(Unanswered)
    def unanswered(request: Request, error: Unanswered) -> JSONResponse:
        log.error("a child gave no answer: %s", error)
        return answer(503, "this cannot be answered now; try again.", "unavailable")

    @app.exception_handler(Closed)
    def closed(request: Request, error: Closed) -> JSONResponse:
        return answer(503, "the service is being stopped; try again in a while.", "unavailable")

    @app.exception_handler(exc.DataError)
    def strange(request: Request, error: exc.DataError) -> JSONResponse:
        return answer(
            400, "the request holds a number or character that has no place here.", "invalid_value"
        )

    @app.exception_handler(exc.OperationalError)
    def busy(request: Request, error: exc.OperationalError) -> JSONResponse:
        log.error("the database: %s", error.orig)
        return answer(503, BUSY, "unavailable")

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(500, "the service made a mistake; its log says which.", "internal_error")
