"""A service as a process of its own, on a free port, for tests that kill and start it again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai

from launch import folder as files

ENDED = {"succeeded", "failed", "cancelled"}


class Served:
    """Starts at once; `start` after `stop` or `kill` starts it on the same root and port."""

    def __init__(
        self, base: Path, *words: str, port: int = 0, token: str | None = None, forks=None
    ):
        """`forks`: a `forking.Forks`, by which it starts at once."""
        self.root, self.log, self.forks = base / "root", base / "server.log", forks
        self.words, self.port, self.token = words, port, token
        self.process = None
        self.start()

    def start(self, *more: str) -> None:
        words = ["--root", str(self.root), "--port", str(self.port), *self.words, *more]
        self.process = self.forks.start(words, self.log) if self.forks else self.popen(words)
        said = self.process.stdout.readline()
        match = re.search(r"http://[^:]+:(\d+)", said)
        assert match, f"{said}{self.log.read_text()}"
        self.port = int(match[1])
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self.openai = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key=self.token or "none"
        )
        until(lambda: self.http.get("/health").is_success, 30, httpx2.TransportError)

    def popen(self, words: list[str]):
        command = [sys.executable, "-m", "tests.launch.serving", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def create(self, **settings):
        method = {"type": "toy", "toy": settings}
        return self.openai.fine_tuning.jobs.create(model="", training_file="", method=method)

    def ends(self, job_id: str, states=ENDED, seconds: float = 180):
        """The job once it is in one of the states."""

        def state():
            job = self.openai.fine_tuning.jobs.retrieve(job_id)
            return job if job.status in states else None

        return until(state, seconds)

    def steps(self, job_id: str, number: int) -> None:
        until(lambda: (self.openai.fine_tuning.jobs.retrieve(job_id).step or 0) >= number)

    def events(self, job_id: str):
        page = self.openai.fine_tuning.jobs.list_events(job_id, limit=100)
        return [event.message for event in page.data][::-1]

    def trainers(self):
        """Processes that carry a job's mark."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (OSError, ValueError):
                continue
            mine = any(str(self.root).encode() in word for word in words)
            if b"launch.trainer" in words and mine and files.start_ticks(int(entry.name)):
                found.append(int(entry.name))
        return found


def until(what, seconds: float = 180, ignored: type[Exception] = ()):
    """What it says, once it says something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found = what()
        except ignored:
            found = None
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"nothing within {seconds} s")
