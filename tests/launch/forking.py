"""Words of `diffdoctor serve` in, a JSON line each; that service in a process of its own, at once.

Run as a program with the libraries loaded once, so that services can be killed by the hundred; the
settings of jobs are checked within the service. `Forks` is its other end.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import core.config
import launch.service.service
from launch.commands import serve
from launch.methods import METHODS, Method
from launch.service import app, checker, serving  # noqa: F401  # loaded before the first fork
from tests.launch.toy import METHOD


class Within:
    """The checker without its child, which takes a second to start."""

    def __init__(self, *_, **options):
        pass

    def ask(self, what, **values):
        question = {"do": what, **json.loads(json.dumps(values))}
        return checker.told(checker.answer(checker.QUESTIONS, question))

    def close(self):
        pass


class Forks:
    """The program as a child; `start` has it fork a service."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "tests.launch.forking"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.parent = subprocess.Popen(words, text=True, env=environment, **pipes)
        self.said = self.parent.stdout.readline()

    def start(self, words: list[str], log: Path) -> "Fork":
        with tempfile.TemporaryDirectory() as folder:
            pipe = Path(folder) / "said"
            os.mkfifo(pipe)
            self.tell({"words": words, "pipe": str(pipe), "log": str(log)})
            pid = int(self.parent.stdout.readline())
            return Fork(self, pid, pipe.open())

    def tell(self, what) -> None:
        self.parent.stdin.write(json.dumps(what) + "\n")
        self.parent.stdin.flush()

    def close(self) -> None:
        self.parent.stdin.close()
        self.parent.wait()


class Fork:
    """As far as `Served` needs it, a `Popen`."""

    def __init__(self, forks: Forks, pid: int, stdout):
        self.forks, self.pid, self.stdout = forks, pid, stdout

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)  # it is not reaped before `wait`

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> int:
        self.forks.tell({"wait": self.pid})
        self.stdout.close()
        return int(self.forks.parent.stdout.readline())


def serve_words(words: list[str], pipe: str, log: str) -> None:
    """In the child, which never returns."""
    code = 1
    try:
        for place, number in ((pipe, 1), (log, 2)):
            os.dup2(os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        core.config.run_program(serve.main, serve.Config, words, prog="diffdoctor serve")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    METHODS["toy"] = Method(**METHOD)
    launch.service.service.Checker = Within
    checker.answer(checker.QUESTIONS, {"do": "free", "config": METHOD["config"]})  # imports it
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if child == 0:
            serve_words(**asked)
        print(child, flush=True)
