"""Threads that change jobs in; streams that wait for a job's news woken out."""

import asyncio
import threading


class Bell:
    """Rung for a job from any thread, heard in the server's event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.RLock()  # a signal's handler may ring in the midst of a call

    def ring(self, job_id: str) -> None:
        with self._lock:
            loop, waiting = self._loop, list(self._waiting.get(job_id, ()))
        for one in waiting:
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(one.set)

    def ring_all(self) -> None:
        with self._lock:
            names = list(self._waiting)
        for name in names:
            self.ring(name)

    def heard(self) -> bool:
        """Whether any stream waits."""
        return bool(self._waiting)

    def listen(self, job_id: str) -> asyncio.Event:
        """Set at every ring from now on, until `leave`."""
        heard = asyncio.Event()
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._waiting.setdefault(job_id, set()).add(heard)
        return heard

    def leave(self, job_id: str, heard: asyncio.Event) -> None:
        with self._lock:
            self._waiting[job_id].discard(heard)
            if not self._waiting[job_id]:
                del self._waiting[job_id]
