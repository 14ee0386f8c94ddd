"""What is to be looked at, by name, in; each looked at on a thread of its own, out.

A scheduler that does not answer, or a trainer that takes long to end, holds up no other job; and a
fault that stays is told ever more rarely.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping

from launch.launchers.contract import Unreachable

Key = tuple[str, int]
"""A job's id and the number of its attempt."""
THREADS = 16
WAIT = 1.0
"""Seconds within which looks commonly end: so long they are waited for."""
FIRST, LONGEST = 60.0, 3600.0
"""Seconds until a fault that stays is told a second time; each further pause is twice as long."""

log = logging.getLogger("diffdoctor.service")


class Looks:
    """One look at a time for each key; threads are started as they are needed, and left behind."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Key, Callable[[], None]] | None]
        self._queue = queue.SimpleQueue()
        self._under_way: set[Key] = set()
        self._told: dict[Key, tuple[float, float]] = {}
        self._changed = threading.Condition()
        self._threads = 0

    def take(self, looks: Mapping[Key, Callable[[], None]]) -> None:
        """Begin those whose last one has ended; return when all have, or after `WAIT` seconds."""
        with self._changed:
            new = {key: look for key, look in looks.items() if key not in self._under_way}
            self._under_way |= set(new)
            missing = min(THREADS, len(self._under_way)) - self._threads
            self._threads += max(0, missing)
        for _ in range(missing):
            threading.Thread(target=self._work, name="look", daemon=True).start()
        for item in new.items():
            self._queue.put(item)
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way & set(new), WAIT)
            for gone in set(self._told) - set(looks):
                del self._told[gone]

    def close(self) -> None:
        """Whatever is under way goes on, and then its thread ends."""
        for _ in range(self._threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            key, look = item
            fault = None
            try:
                look()
            except Exception as error:
                fault = error
            with self._changed:
                self._tell(key, fault)
                self._under_way.discard(key)
                self._changed.notify_all()

    def _tell(self, key: Key, error: Exception | None) -> None:
        """A fault, if it has not been told of late."""
        if error is None:
            self._told.pop(key, None)
            return
        due, pause = self._told.get(key, (0.0, FIRST))
        if time.monotonic() < due:
            return
        self._told[key] = (time.monotonic() + pause, min(2 * pause, LONGEST))
        if isinstance(error, Unreachable):
            log.warning("attempt %d of %s cannot be looked at: %s", key[1], key[0], error)
        else:
            log.error("a look at %s failed; the next one follows", key[0], exc_info=error)
