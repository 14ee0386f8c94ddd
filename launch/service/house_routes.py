"""What the service is and offers: models, methods and their settings, health, version, its docs."""

import html
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from launch.methods import METHODS
from launch.service import shapes
from launch.service.faults import Missing
from launch.service.guard import PUBLIC, READ, SCHEME, Route
from launch.service.jobs_routes import House, Who
from launch.service.metrics import TYPE
from launch.service.states import State

TEXT = {"text/plain": {"schema": {"type": "string"}}}
NEWEST = 100
"""Jobs of an owner that are looked through for what they made."""


def health(house: House) -> Any:
    """Whether the service can answer: its database does."""
    house.tokens.any()
    return {"status": "ok"}


def read_version() -> Any:
    return {"version": installed_version()}


def metrics(house: House) -> Response:
    """Jobs by state, slots, requests and the process, for Prometheus: counts over all owners."""
    return Response(house.metrics.text(), media_type=TYPE)


def list_models(who: Who, house: House) -> Any:
    """What a setting may name: the operator's models, and what your jobs made."""
    return shapes.listed(models(house, who.owner))


def retrieve_model(model_id: str, who: Who, house: House) -> Any:
    named = [one for one in models(house, who.owner) if one["id"] == model_id]
    if not named:
        raise Missing("model", model_id)
    return named[0]


def models(house: Any, owner: str) -> list[dict[str, Any]]:
    ours = [
        {"id": name, "object": "model", "created": 0, "owned_by": "service"}
        for name in sorted(house.plan.models)
    ]
    jobs = house.jobs.jobs(owner, None, NEWEST).rows
    made = [
        {
            "id": shapes.model_name(row),
            "object": "model",
            "created": int(row["finished_at"]),
            "owned_by": owner,
        }
        for row in jobs
        if row["state"] == State.SUCCEEDED
    ]
    return ours + made


def list_methods() -> Any:
    """The kinds of jobs there are."""
    return shapes.listed([method_shape(name) for name in METHODS])


def method_shape(name: str) -> dict[str, Any]:
    one = METHODS[name]
    return {
        "id": name,
        "object": "method",
        "description": one.does,
        "inputs": dict(one.inputs),
        "training_file": one.training_file,
        "validation_file": one.validation_file,
        "model": one.model,
        "needs_training_file": one.needs_training_file,
        "wishes": list(one.wishes),
    }


def method_schema(name: str, house: House) -> Any:
    """The settings of a method as JSON schema, without those that nobody may set over HTTP."""
    if name not in METHODS:
        raise Missing("method", name)
    one = METHODS[name]
    allowed = [*one.inputs, *one.words]
    return JSONResponse(house.checker.ask("schema", config=one.config, allowed=allowed))


def openapi(request: Request) -> Any:
    spec = request.app.openapi()
    spec["components"]["securitySchemes"] = SCHEME
    return JSONResponse(spec)


def docs(request: Request) -> HTMLResponse:
    """The same for people: one plain page, which asks nothing of any other place."""
    spec = request.app.openapi()
    rows = []
    for path, operations in spec["paths"].items():
        for verb, one in operations.items():
            told = html.escape(one.get("description", one.get("summary", "")))
            given = [f"{p['name']} ({p['in']})" for p in one.get("parameters", [])]
            body = next(iter(one.get("requestBody", {}).get("content", {}).values()), None)
            schema = f"<pre>{_shown(body['schema'])}</pre>" if body else ""
            rows.append(
                f"<h3>{verb.upper()} {html.escape(path)}</h3><p>{told}</p>"
                f"<p>{html.escape(', '.join(given))}</p>{schema}"
            )
    shared = "".join(
        f"<h3>{html.escape(name)}</h3><pre>{_shown(one)}</pre>"
        for name, one in spec["components"]["schemas"].items()
    )
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>diffdoctor</title>"
        f"<h1>diffdoctor {html.escape(spec['info']['version'])}</h1>"
        "<p>As OpenAPI: <a href=/openapi.json>/openapi.json</a></p>"
        f"{''.join(rows)}<h2>Shapes</h2>{shared}</html>"
    )
    return HTMLResponse(page)


def installed_version() -> str:
    try:
        return version("diffdoctor")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "not installed"


def _shown(schema: Any) -> str:
    return html.escape(json.dumps(schema, indent=2))


ROUTES = [
    Route("GET", "/health", health, PUBLIC),
    Route("GET", "/version", read_version, PUBLIC),
    Route("GET", "/metrics", metrics, READ,
          {"response_class": Response, "responses": {200: {"content": TEXT}}}),
    Route("GET", "/v1/models", list_models, READ, {"response_model": shapes.Models}),
    Route("GET", "/v1/models/{model_id}", retrieve_model, READ,
          {"response_model": shapes.ModelShape}),
    Route("GET", "/v1/methods", list_methods, READ, {"response_model": shapes.Methods}),
    Route("GET", "/v1/methods/{name}/schema", method_schema, READ),
    # The same of every service, so for anybody: a browser has no token to send for a page.
    Route("GET", "/openapi.json", openapi, PUBLIC, {"include_in_schema": False}),
    Route("GET", "/docs", docs, PUBLIC, {"include_in_schema": False}),
]  # fmt: skip
