"""A Ray of one machine, with all its files in a folder of its own."""

import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.launch.served import until


class Cluster:
    """A head that takes jobs at its address."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ports = free_ports(3)
        self.address = f"http://127.0.0.1:{self.ports[1]}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Once more where Ray gave up: on a busy machine the 30 s that it has may be too few."""
        program = Path(sys.executable).with_name("ray")
        assert program.is_file(), "run `make test-system`, which makes .venv-ray"
        words = ["start", "--head", "--block", "--disable-usage-stats", "--num-cpus=3"]
        words += [f"--port={self.ports[0]}", f"--dashboard-port={self.ports[1]}"]
        words += ["--node-ip-address=127.0.0.1", f"--temp-dir={self.folder}"]
        words += ["--object-store-memory=100000000", "--dashboard-agent-listen-port=0"]
        words += ["--min-worker-port=0", "--max-worker-port=0"]
        words += [f"--ray-client-server-port={self.ports[2]}"]
        for _ in range(3):
            with (self.folder / "out.log").open("wb") as log:
                self.process = subprocess.Popen(
                    [program, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            until(lambda: self.ended() or self.listens(), 300, OSError)
            if not self.ended():
                return
        raise AssertionError((self.folder / "out.log").read_text()[-3000:])

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def listens(self) -> bool:
        """The dashboard does before the rest is up, and does not outlive it."""
        if "Ray runtime started" not in (self.folder / "out.log").read_text():
            return False
        token = {"authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
        asked = urllib.request.Request(f"{self.address}/api/version", headers=token)
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return answer.status == 200

    def stop(self) -> None:
        if self.process is None or self.ended():
            return
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_ports(number: int) -> list[int]:
    """Below those that the kernel gives out by itself, so that nobody is given one meanwhile."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < number:
            port = random.randrange(20_000, 30_000)
            with suppress(OSError):
                held.enter_context(socket.create_server(("", port)))
                found.append(port)
    return found


@contextmanager
def ray():
    """A cluster that takes jobs from who knows its token, which stands in the environment."""
    folder = Path(tempfile.mkdtemp(prefix="diffdoctor-ray-"))  # a socket's path is short
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]
        shutil.rmtree(folder, ignore_errors=True)
