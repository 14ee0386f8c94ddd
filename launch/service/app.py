"""The service's parts in, one ASGI app out, every route of which has a policy."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from launch.service import (
    figures_routes,
    files_routes,
    house_routes,
    jobs_routes,
    pages_routes,
    score_routes,
    wishes_routes,
)
from launch.service.faults import add_handlers
from launch.service.guard import Guard, Route, add_routes, policies
from launch.service.logs import answered
from launch.service.service import Service
from launch.service.shapes import ERRORS

ROUTES: tuple[Route, ...] = (
    *jobs_routes.ROUTES,
    *figures_routes.ROUTES,
    *files_routes.ROUTES,
    *house_routes.ROUTES,
    *pages_routes.ROUTES,
    *score_routes.ROUTES,
    *wishes_routes.ROUTES,
)


def make_app(
    service: Service, open_to: frozenset[str] | None, routes: Sequence[Route] = ROUTES
) -> Guard:
    """`open_to`: the names by which this machine may be called without a token, or None."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.begin)
        yield
        await run_in_threadpool(service.end)

    app = FastAPI(
        title="diffdoctor",
        version=house_routes.installed_version(),
        description="Diagnose the artifacts of image diffusion models, and treat the model.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        responses=ERRORS,
    )
    app.state.service = service
    add_routes(app, routes)
    add_handlers(app)
    rules = policies(app, routes)

    def heard(method: str, route: str, status: int, seconds: float) -> None:
        service.metrics.heard(method, route, status, seconds)
        answered(method, route, status, seconds)

    return Guard(app, rules, service.tokens, open_to, service.plan.limits.upload, heard)
