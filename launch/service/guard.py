"""A request in; let through, or refused before a byte of its body is read.

Every route carries a policy: an app with one that does not is not made. The order is host and
origin, then who asks, then the size of what is sent; then only the route's own code runs.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.service.tokens import LOCAL, Caller, Tokens

log = logging.getLogger("diffdoctor.service")

SMALL = 1 << 20
"""Bytes of a body that is no upload."""
HOST = re.compile(r"(?:\[([0-9A-Fa-f:]+)\]|([A-Za-z0-9.-]+))(?::\d{1,5})?")
"""A name or an address, and perhaps a port."""
BUSY = "the database is busy; try again."
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'self'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
}


class Policy(NamedTuple):
    """Who may use a route, and how much they may send."""

    scope: str | None
    """None: anybody."""
    body: int | None = SMALL
    """None: the largest upload."""


PUBLIC = Policy(None)
READ = Policy("read")
WRITE = Policy("write")
UPLOAD = Policy("write", body=None)


class Route(NamedTuple):
    """One line of a router's list."""

    method: str
    path: str
    endpoint: Callable[..., Any]
    policy: Policy
    options: dict[str, Any] = {}
    """Further arguments of FastAPI's `add_api_route`."""


SCHEME = {"token": {"type": "http", "scheme": "bearer"}}
"""How a token is given, in OpenAPI's words."""


def add_routes(app: FastAPI, routes: Iterable[Route]) -> None:
    for one in routes:
        said = one.options.get("openapi_extra", {})
        if one.policy.scope is not None:
            said = {**said, "security": [dict.fromkeys(SCHEME, [])]}
        options = {**one.options, "openapi_extra": said}
        app.add_api_route(one.path, one.endpoint, methods=[one.method], **options)


def policies(app: FastAPI, routes: Sequence[Route]) -> list[tuple[APIRoute, Policy]]:
    """The policy of every route that an app answers; `RuntimeError` where one has none."""
    listed = {(one.method, one.path): one.policy for one in routes}
    found = []
    for route in app.routes:
        names = sorted(route.methods or ()) if isinstance(route, APIRoute) else ["?"]
        path = getattr(route, "path", repr(route))
        if not isinstance(route, APIRoute) or any((name, path) not in listed for name in names):
            raise RuntimeError(f"the route {', '.join(names)} {path} has no policy.")
        found.append((route, listed[names[0], path]))
    return found


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """An error in OpenAI's shape; of half characters, which a request may hold, question marks."""
    said = [text and text.encode(errors="replace").decode() for text in (message, param)]
    return {"error": {"message": said[0], "type": kind, "param": said[1], "code": code}}


class Guard:
    """The outermost layer of the app."""

    def __init__(
        self,
        app: ASGIApp,
        rules: Sequence[tuple[BaseRoute, Policy]],
        tokens: Tokens,
        open_to: frozenset[str] | None,
        largest: int,
        heard: Callable[[str, str, int, float], None] | None = None,
    ):
        self.app, self.rules, self.tokens = app, rules, tokens
        self.open_to = open_to
        """Names of this machine by which it may be called without a token, if none was ever made;
        None: nobody is let in without one."""
        self.largest = largest
        self.heard = heard
        """Told of every answer: method, the route's pattern, status, seconds until it began."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here
            return
        send = self._told(scope, _with_headers(send))
        try:
            refusal = await self._refusal(scope)
        except OperationalError as error:  # `faults` hears of what routes raise
            log.error("the database: %s", error.orig)
            refusal = _refused(503, BUSY, "unavailable")
        known = self._methods(scope)
        if refusal is None and known and scope["method"] not in known:
            told = f"{scope['method']} is not for this address."
            refusal = _refused(405, told, "method_not_allowed", {"allow": ", ".join(known)})
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        largest = self._rule(scope)[1].body
        await _limited(self.app, scope, receive, send, self.largest if largest is None else largest)

    async def _refusal(self, scope: Scope) -> JSONResponse | None:
        """None where the request may pass; then `scope` says who asks."""
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) != 1:
            return _refused(400, "a request names one Host.", "invalid_host")
        origin = headers.get("origin")
        ours = f"http://{headers['host']}", f"https://{headers['host']}"  # behind a proxy
        if origin is not None and origin not in ours:
            return _refused(403, "pages of other places may not call this service.", "origin")
        _, policy = self._rule(scope)
        if policy.scope is None and not self._local():
            return None
        if self._local() and not await run_in_threadpool(self.tokens.any):
            return self._by_host(scope, headers["host"])
        if policy.scope is None:
            return None
        caller = await run_in_threadpool(self._caller, headers.get("authorization", ""))
        if caller is None:
            return _refused(
                401,
                "give a valid token: Authorization: Bearer dd_...; whoever runs the service makes "
                "one with `diffdoctor token create`.",
                "invalid_api_key",
                {"www-authenticate": "Bearer"},
            )
        if policy.scope not in caller.scopes:
            return _refused(403, f"this token may not {policy.scope}.", "insufficient_scope")
        scope.setdefault("state", {})["caller"] = caller
        return None

    def _by_host(self, scope: Scope, host: str) -> JSONResponse | None:
        """Without tokens a page of elsewhere could reach us by a name that it moved here."""
        found = HOST.fullmatch(host)
        name = found and (found[1] or found[2]).lower()
        if self.open_to is None or name not in self.open_to:
            return _refused(403, f"this service is not called {host}.", "invalid_host")
        scope.setdefault("state", {})["caller"] = LOCAL
        return None

    def _local(self) -> bool:
        return self.open_to is not None

    def _caller(self, header: str) -> Caller | None:
        kind, _, token = header.partition(" ")
        return self.tokens.caller(token.strip()) if kind.lower() == "bearer" else None

    def _rule(self, scope: Scope) -> tuple[str, Policy]:
        """A route's pattern and policy; what leads nowhere needs a token all the same."""
        partial = "none", READ
        for route, policy in self.rules:
            match, _ = route.matches(scope)
            path = getattr(route, "path", "none")
            if match is Match.FULL:
                return path, policy
            if match is Match.PARTIAL:
                partial = path, policy
        return partial

    def _methods(self, scope: Scope) -> list[str]:
        """What the routes of an address take; none where it leads nowhere."""
        here = [route for route, _ in self.rules if route.matches(scope)[0] is not Match.NONE]
        return sorted({name for one in here for name in getattr(one, "methods", None) or ()})

    def _told(self, scope: Scope, send: Send) -> Send:
        heard, begun = self.heard, time.monotonic()
        if heard is None:
            return send

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                route, _ = self._rule(scope)
                heard(scope["method"], route, message["status"], time.monotonic() - begun)
            await send(message)

        return sending


def caller_of(request: Request) -> Caller:
    return request.state.caller


def _refused(
    status: int, message: str, code: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    kinds = {401: "authentication_error", 403: "permission_error", 503: "server_error"}
    body = error_body(message, kinds.get(status, "invalid_request_error"), None, code)
    return JSONResponse(body, status, headers)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


class TooLarge(Exception):
    """More bytes came than the route takes."""


async def _limited(app: ASGIApp, scope: Scope, receive: Receive, send: Send, largest: int) -> None:
    """Count what comes in, whatever the request says of its length."""
    said = Headers(scope=scope).get("content-length", "0")
    too_large = _refused(400, f"a body may have {largest} bytes here.", "too_large")
    too_large.status_code = 413
    if not said.isdigit() or int(said) > largest:
        await too_large(scope, receive, send)
        return
    arrived, begun, over = 0, False, False

    async def counting() -> Message:
        nonlocal arrived, over
        message = await receive()
        arrived += len(message.get("body", b""))
        if arrived > largest:
            over = True
            raise TooLarge
        return message

    async def sending(message: Message) -> None:
        nonlocal begun
        if over and not begun:  # what the app makes of a body that broke off
            return
        begun = True
        await send(message)

    try:
        await app(scope, counting, sending)
    except TooLarge:
        pass
    if over and not begun:
        await too_large(scope, receive, send)
