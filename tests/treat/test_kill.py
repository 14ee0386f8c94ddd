"""Killed or asked to stop at any moment and started again, a treatment ends in the same bits."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from core import checkpoint
from core.config import to_yaml
from core.run import PAUSED
from tests.treat.setting import build, config, digest, losses

STEPS, EVERY = 12, 2


class Fresh:
    """Runs settings in processes of their own, and stops them."""

    def __init__(self, folder):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "tests.treat.forking"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.parent = subprocess.Popen(words, text=True, env=environment, **pipes)
        self.folder = folder
        assert self.parent.stdout.readline()  # its libraries are loaded

    def run(self, settings, wait=None, number=signal.SIGKILL):
        """Its exit code; once `wait` returns it is sent a signal, if it lives."""
        file = self.folder / f"{settings.out.name}.yaml"
        file.write_text(to_yaml(settings))
        self.parent.stdin.write(f"{file}\n")
        self.parent.stdin.flush()
        child = int(self.parent.stdout.readline())
        try:
            if wait is not None:
                wait()
        finally:  # whatever became of the wait, the next run finds the parent listening
            if wait is not None:
                os.kill(child, number)  # one that has ended already is not reaped yet
            self.parent.stdin.write("\n")
            self.parent.stdin.flush()
            code = int(self.parent.stdout.readline())
        return code

    def said(self, settings):
        """What its runs wrote to stderr."""
        return (self.folder / f"{settings.out.name}.yaml.said").read_text()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    fresh = Fresh(tmp_path_factory.mktemp("settings"))
    yield fresh
    fresh.parent.stdin.close()
    fresh.parent.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(fresh, world, tmp_path_factory):
    """What an undisturbed run ends in, and the seconds it takes."""
    settings = wanted(world, tmp_path_factory.mktemp("whole") / "run")
    begun = time.monotonic()
    assert fresh.run(settings) == 0
    seconds = time.monotonic() - begun
    print(f"{seconds:.1f} s undisturbed")
    return digest(settings.out, STEPS), losses(settings.out), seconds


def wanted(world, out):
    return config(world, out, steps=STEPS, checkpoint_every=EVERY)


def disturbed(fresh, world, tmp_path, whole, stops, number, expected):
    """Run after run, each stopped at random moments until it ends as the undisturbed one did.

    A stop gives one of the `expected` exit codes; one that comes too late counts for none.
    """
    seed = int.from_bytes(os.urandom(3))
    chance, stopped = random.Random(seed), 0
    for run in itertools.count():
        if stopped >= stops:
            return
        settings, code = wanted(world, tmp_path / f"run-{run}"), 1
        while code:
            moment = partial(time.sleep, chance.uniform(0, whole[2]))
            stopping = stopped < stops
            code = fresh.run(settings, moment if stopping else None, number)
            assert code in (expected | {0} if stopping else {0}), fresh.said(settings)
            if code:
                stopped += 1
                lost = logged(settings.out) - newest(settings.out)
                assert lost <= (0 if code == PAUSED else EVERY), f"seed {seed}"
        assert (digest(settings.out, STEPS), losses(settings.out)) == whole[:2], f"seed {seed}"
        assert logged(settings.out) == STEPS


def logged(out):
    """The last step whose figures are in the file, of which step 0 is the first line."""
    path = out / "metrics.jsonl"
    return max(0, path.read_text().count("\n") - 1) if path.exists() else 0


def newest(out):
    """The step of the newest checkpoint, which must be whole."""
    found = checkpoint.load_newest(out / "checkpoints", report=pytest.fail)
    return found.step if found else 0


@pytest.mark.parametrize("stops", [6, pytest.param(300, marks=pytest.mark.trial)])
def test_killed_at_random_moments(fresh, world, whole, tmp_path, stops):
    disturbed(fresh, world, tmp_path, whole, stops, signal.SIGKILL, {-signal.SIGKILL})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("stops", [2, pytest.param(67, marks=pytest.mark.trial)])
def test_asked_to_stop_at_random_moments(fresh, world, whole, tmp_path, stops, number):
    """Before it has a run it may simply end, as nothing is lost."""
    expected = {PAUSED, -number, 128 + number}
    disturbed(fresh, world, tmp_path, whole, stops, number, expected)


def until(out, step):
    """Wait until the step is done."""
    for _ in range(6000):
        if logged(out) >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached within a minute")


def test_asked_to_stop_in_the_middle_it_pauses(fresh, world, whole, tmp_path):
    settings = wanted(world, tmp_path / "middle")
    moment = partial(until, settings.out, 3)
    assert fresh.run(settings, moment, signal.SIGTERM) == PAUSED
    assert "the same command resumes" in fresh.said(settings)
    assert 3 <= newest(settings.out) == logged(settings.out) < STEPS
    assert fresh.run(settings) == 0
    assert (digest(settings.out, STEPS), losses(settings.out)) == whole[:2]


def test_control_a_kill_without_checkpoints_loses_more(fresh, world, tmp_path):
    rare = {"checkpoint_every": 100, "watch_every": 100}  # a look saves as well
    settings = config(world, tmp_path / "run", steps=STEPS, **rare)

    assert fresh.run(settings, partial(until, settings.out, EVERY + 1)) == -signal.SIGKILL
    assert logged(settings.out) - newest(settings.out) > EVERY
