"""An app and an address in; requests answered until a signal asks to stop. Trainers go on."""

import resource
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from core.errors import UserError
from launch.service import logs
from launch.service.guard import Guard
from launch.service.service import Service

LAST = 3
"""Seconds that open requests have at the end; streams are ended by the service itself."""

QUIET: dict[str, Any] = {
    "log_config": None,  # into our log, in its form
    "log_level": "warning",
    "access_log": False,  # a request's line may hold what is nobody's business
}


class Server(uvicorn.Server):
    """Tells the service at once that it ends, so that its streams and open questions do."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Without uvicorn's own end, which raises the signal again: a stop that was asked for
        is no failure."""
        self.service.leave()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A socket of that address, or `UserError`; taken before anything is begun."""
    try:
        listening = socket.create_server((host, port), family=_family(host), backlog=512)
        # What is accepted inherits it. asyncio does so itself only where the socket names its
        # protocol, and without it an answer's second part waits 40 ms for the first to be heard.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another --port."
        ) from error


def serve(
    app: Guard, service: Service, listening: socket.socket, style: logs.Style = "text"
) -> None:
    """Until SIGTERM or SIGINT."""
    logs.set_up(style)
    hold_many()
    config = uvicorn.Config(
        app,
        **QUIET,
        server_header=False,
        timeout_graceful_shutdown=LAST,
        lifespan="on",
        ws="none",
        loop="asyncio",
        http="h11",
    )
    Server(config, service).run(sockets=[listening])


def hold_many() -> None:
    """As many open connections as this process may have; most systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
