"""Signals in, a flag out: a program is asked to stop and chooses its moment.

The first SIGTERM, SIGINT or SIGUSR1 (a scheduler's warning) sets the flag; a second Ctrl-C raises
`KeyboardInterrupt` at once. When nobody listens any more the former handlers are put back.
"""

import os
import signal
import threading
import weakref
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_listeners: "weakref.WeakSet[Interrupts]" = weakref.WeakSet()
_former: dict[int, Any] = {}
_owner = 0


class Interrupts:
    """Listens from its making until `close`; outside the main thread it hears nothing."""

    def __init__(self) -> None:
        self.received = False
        if threading.current_thread() is threading.main_thread():
            _listeners.add(self)
            _install()

    def close(self) -> None:
        _listeners.discard(self)
        if not _listeners:
            _restore()


def _install() -> None:
    global _owner
    _owner = os.getpid()
    for number in SIGNALS:
        if signal.getsignal(number) is not _handle:
            _former[number] = signal.signal(number, _handle)


def _restore() -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # Python sets handlers from the main thread only; `_handle` does it then
    for number, handler in list(_former.items()):
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        del _former[number]


def _handle(number: int, frame: object) -> None:
    """A forked child, or a process whose listeners are gone, acts as if we were not here."""
    if not _listeners or os.getpid() != _owner:
        _restore()
        os.kill(os.getpid(), number)
        return
    again = all(listener.received for listener in _listeners)
    for listener in _listeners:
        listener.received = True
    if again and number == signal.SIGINT:
        raise KeyboardInterrupt
