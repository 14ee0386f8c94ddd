"""Fault injection at the one seam of `core.storage`: stop or fail at a chosen operation.

A forked child runs the work, so that SIGKILL is the real one and the parent (with its libraries
loaded) goes on.
"""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from core.storage import primitives

NAMES = [field.name for field in dataclasses.fields(primitives)]


@contextlib.contextmanager
def replaced(wrap: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """Every storage operation `f` is `wrap(name, f)` inside the block."""
    former = {name: getattr(primitives, name) for name in NAMES}
    try:
        for name, function in former.items():
            setattr(primitives, name, wrap(name, function))
        yield
    finally:
        for name, function in former.items():
            setattr(primitives, name, function)


def operations(work: Callable[[], object]) -> list[str]:
    """The storage operations of one undisturbed call."""
    seen: list[str] = []

    def wrap(name, function):
        def counted(*args, **kwargs):
            seen.append(name)
            return function(*args, **kwargs)

        return counted

    with replaced(wrap):
        work()
    return seen


def killed_at(work: Callable[[], object], n: int, after: bool) -> bool:
    """Run `work` in a child that SIGKILLs itself before or after operation n; True if it did."""
    child = os.fork()
    if child == 0:
        try:
            with replaced(_killer(n, after)):
                work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _killer(n: int, after: bool):
    count = [0]

    def wrap(name, function):
        def deadly(*args, **kwargs):
            here, count[0] = count[0] == n, count[0] + 1
            if here and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if here:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return deadly

    return wrap


@contextlib.contextmanager
def failing_at(n: int, code: int) -> Iterator[None]:
    """Operation n and all later writes raise `OSError(code)`, as on a disk that stays full."""
    count = [0]

    def wrap(name, function):
        def broken(*args, **kwargs):
            here, count[0] = count[0], count[0] + 1
            if here == n or (here > n and name == "write"):
                raise OSError(code, os.strerror(code), str(args[0]))
            return function(*args, **kwargs)

        return broken

    with replaced(wrap):
        yield


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
