"""Several processes (gloo) of a program whose libraries are loaded once.

As a program (`serve(main)`): calls in, a JSON line each, and their processes start in no time, each
with what a launcher says to it; answers with their exit codes.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator

from core.run import PAUSED

OWN = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@contextlib.contextmanager
def served(module: str) -> Iterator[Callable[..., list[int]]]:
    """`call(processes, given, **environment)`: exit codes of `main(**given)` in as many processes
    of `tests.X`, in the order they ended; one that fails ends the others."""
    parent = subprocess.Popen(
        [sys.executable, "-m", module],
        env={**os.environ, **OWN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout.readline()  # its libraries are loaded

    def call(processes: int, given: dict, **environment: str) -> list[int]:
        asked = {"processes": processes, "environment": environment, "given": given}
        print(json.dumps(asked), file=parent.stdin, flush=True)
        return json.loads(parent.stdout.readline())

    yield call
    parent.stdin.close()
    parent.wait()


def serve(main: Callable[..., int | None], patience: int) -> None:
    """`patience`: seconds that a process may take."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(main, patience, **json.loads(line))), flush=True)


def answer(main, patience: int, processes: int, environment: dict, given: dict) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), **environment}
    left = {fork(main, rank, place, given, patience) for rank in range(processes)}
    codes = []
    while left:
        child, status = os.wait()
        left.remove(child)
        codes.append(os.waitstatus_to_exitcode(status))
        failed = codes[-1] not in (0, PAUSED)
        for other in left if failed else ():
            os.kill(other, signal.SIGKILL)
    return codes


def fork(main, rank: int, place: dict, given: dict, patience: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(patience)
        os.dup2(2, 1)  # the answers' way
        os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
        code = main(**given) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
