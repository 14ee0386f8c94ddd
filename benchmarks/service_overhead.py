"""What does the service add? A treatment by the command line and as a job, and an idle server.

    OMP_NUM_THREADS=1 python -m benchmarks.service_overhead --out /tmp/overhead --json overhead.json

Both run the same programs (`treat`, then `export`) with the same settings on the miniature, in
turn: the command line before and after each job. Medians are told. Seconds are the processor's, of
all processes: of the job the programs that the command line runs too, and what is there for the
service alone: the trainer's own process, the server while the job lasts, and the child that checks
its settings. `ratio` is by these, `whole` by all seconds in turn, in which the same programs differ
by several per cent as the processor's clock does. Linux only.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

import core.config
from core.errors import UserError
from core.run import plain
from core.storage import write_atomic
from launch.client import Client
from launch.folder import Lease
from miniature.prompts import balanced, split

ROOT = Path(__file__).resolve().parents[1]
BASE, DETECTOR = ROOT / "miniature/bases/newest", ROOT / "miniature/detectors/first"
LOOK = 0.5
"""Seconds between two looks at the processes."""
ASK = 5.0
"""Seconds between two questions to the service how its job is, as its dashboard asks."""


class Config(core.config.Config):
    """How long the job is, and where it runs."""

    out: Path
    """Folder for prompts, runs and the service's root; it must not be there yet."""
    steps: int = Field(1000, ge=1)
    """Of a treatment."""
    repeats: int = Field(3, ge=1)
    """Jobs, each on a server of its own."""
    sampling_steps: int = Field(4, ge=1)
    """T."""
    batch: int = Field(2, ge=1)
    """Images of an update."""
    settle: float = Field(20.0, gt=0)
    """Seconds after its start at which the idle server is looked at."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    if config.out.exists():
        raise UserError(f"{config.out} is there already: name a new folder.")
    config.out.mkdir(parents=True)
    prompts = config.out / "prompts.txt"
    prompts.write_text("".join(f"{one}\n" for one in balanced(split()["train"], 40, seed=0)))
    settings = chosen(config)
    commands, jobs = [by_command(settings, prompts, config.out / "command-0")], []
    for i in range(1, config.repeats + 1):
        jobs.append(by_service(settings, prompts, config.out / f"service-{i}", config.settle))
        commands.append(by_command(settings, prompts, config.out / f"command-{i}"))
        print("commands", commands, "jobs", jobs, flush=True)
    found = {"steps": config.steps, **summed_up(commands, jobs)}
    for name, value in found.items():
        values = value if isinstance(value, list) else [value]
        print(f"{name}:", ", ".join(f"{one:.3f}" for one in values))
    if config.json_file:
        write_atomic(config.json_file, (json.dumps(plain(found), indent=2) + "\n").encode())


def summed_up(commands: list[float], jobs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, with the single values of what the ratio is taken from."""
    added = [one["trainer"] + one["server"] + one["checker"] for one in jobs]
    wholes = [one["programs"] + more for one, more in zip(jobs, added, strict=True)]
    medians = {name: statistics.median(one[name] for one in jobs) for name in jobs[0]}
    command = statistics.median(commands)
    return {
        "commands": commands,
        "jobs": wholes,
        "command": command,
        **medians,
        "ratio": 1 + statistics.median(added) / command,
        "whole": statistics.median(wholes) / command,
    }


def chosen(config: Config) -> dict[str, Any]:
    """Of both runs; what a run only looks at is left out."""
    return {
        "steps": config.steps,
        "sampling_steps": config.sampling_steps,
        "batch": config.batch,
        "height": 64,
        "width": 64,
        "offline_weight": 0,
        "guard": "off",
        "watch_every": 0,
        "picture_every": 0,
        "seed": 0,
    }


def by_command(settings: dict[str, Any], prompts: Path, out: Path) -> float:
    """CPU seconds of `treat` and `export`."""
    named = {"base": str(BASE), "detector": str(DETECTOR), "prompts": str(prompts)}
    file = prompts.with_name("treat.yaml")
    file.write_text(json.dumps({**settings, **named, "out": str(out)}))
    words = [sys.executable, "-P", "-m", "diffdoctor.cli"]
    before = os.times()
    for more in (["treat", "--config", str(file)],
                 ["export", "--run", str(out), "--out", str(out / "export")]):  # fmt: skip
        subprocess.run([*words, *more], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def by_service(
    settings: dict[str, Any], prompts: Path, root: Path, settle: float
) -> dict[str, float]:
    """CPU seconds of trainer, server and checker, and what the idle server holds (MB, % a core)."""
    with server(root) as (process, client):
        time.sleep(settle)
        idle, begun = spent(process.pid), time.monotonic()
        memory = resident(process.pid)
        time.sleep(settle)
        share = 100 * (spent(process.pid) - idle) / (time.monotonic() - begun)
        before = spent(process.pid)
        more = {"model": "newest", "training_file": prompts}
        job = client.create("pixel_reward", {**settings, "detector": "first"}, **more)
        trainer, programs, checker, asked = 0.0, 0.0, 0.0, time.monotonic()
        while job["status"] not in ("succeeded", "failed", "cancelled"):
            checker = max(checker, children(process.pid, "launch.service.checker"))
            own, run = of_trainer(root / "jobs" / job["id"])
            trainer, programs = max(trainer, own), max(programs, run)
            time.sleep(LOOK)
            if time.monotonic() - asked > ASK:
                job, asked = client.job(job["id"]), time.monotonic()
        if job["status"] != "succeeded":
            raise UserError(f"the job has {job['status']}: {job['error']}.")
        ended = checker - children(process.pid, "launch.service.checker")
        return {
            "programs": max(programs, reaped(process.pid) - trainer - ended),
            "trainer": trainer,
            "server": spent(process.pid) - before,
            "checker": checker,
            "idle MB": memory,
            "idle % of a core": share,
        }


@contextmanager
def server(root: Path) -> Any:
    """`diffdoctor serve` on a free port, and a client of it."""
    words = [sys.executable, "-m", "diffdoctor.cli", "serve", "--root", str(root), "--port", "0"]
    words += ["--models", f"newest={BASE}", f"first={DETECTOR}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = re.search(r"http://\S+", process.stdout.readline())
            if said is None:
                raise UserError("the service has not started: see above.")
            with Client(said[0]) as client:
                yield process, client
        finally:
            process.terminate()


def stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; a zombie has them too."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def seconds(ticks: list[str]) -> float:
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def spent(pid: int) -> float:
    """CPU seconds of a process alone."""
    return seconds(stat(pid)[11:13])


def reaped(pid: int) -> float:
    """Of its children that have ended and were waited for."""
    return seconds(stat(pid)[13:15])


def of_trainer(folder: Path) -> tuple[float, float]:
    """A trainer's own and its ended programs', as long as there is anything of it to see."""
    lease = Lease.read(folder)
    try:
        return (spent(lease.pid), reaped(lease.pid)) if lease else (0.0, 0.0)
    except FileNotFoundError:
        return 0.0, 0.0


def children(pid: int, module: str) -> float:
    """CPU seconds of the children that run a module."""
    total = 0.0
    for one in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in one.read_text().split():
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                total += spent(int(child)) if module.encode() in words else 0.0
            except FileNotFoundError:
                continue  # it has just ended
    return total


def resident(pid: int) -> float:
    """MB of memory, by VmRSS."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.service_overhead")
