"""The dashboard: pages and their few static files, the same for everybody.

A page holds no data. Its script asks the API for them, with the token of whoever looks at it, so
that there is one place that decides who may see what; without a token it shows an empty frame.
"""

from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from launch.service.guard import PUBLIC, Route
from launch.service.house_routes import installed_version

HERE = Path(__file__).parent
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob:",  # pictures are fetched with the token
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes markup, whatever a script tries
    )
)
HEADERS = {"content-security-policy": POLICY}
KEPT = {"cache-control": "no-cache"}
"""Of static files: a browser asks whether they changed, and an upgrade shows at once."""


def page(template: str) -> HTMLResponse:
    return HTMLResponse(_drawn(template), headers=HEADERS)


@cache
def _drawn(template: str) -> str:
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
    )
    return templates.get_template(template).render(version=installed_version())


def list_page() -> Any:
    return page("list.html")


def new_page() -> Any:
    return page("new.html")


def job_page(job_id: str) -> Any:
    """The same page for every id: whether there is such a job is not said here."""
    return page("job.html")


def static_file(path: Path) -> Any:
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=KEPT)


def static_routes(folder: Path = HERE / "static") -> list[Route]:
    """One route a file: what is not here when the service is made is not served."""
    return [
        Route("GET", f"/static/{path.name}", partial(static_file, path), PUBLIC, HIDDEN)
        for path in sorted(folder.iterdir())
        if path.suffix in TYPES
    ]


HIDDEN = {"include_in_schema": False}
ROUTES = [
    Route("GET", "/", list_page, PUBLIC, HIDDEN),
    Route("GET", "/new", new_page, PUBLIC, HIDDEN),
    Route("GET", "/jobs/{job_id}", job_page, PUBLIC, HIDDEN),
    *static_routes(),
]
