"""Run folders: one program, one owner, lines that survive, signals that are heard."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from core import checkpoint
from core.config import Config, from_mapping, load_config, read_yaml
from core.errors import UserError
from core.run import PREPARED, Run


class Inner(Config):
    depth: int = 2


class Settings(Config):
    steps: int = 3
    rate: float = 0.1
    inner: Inner = Inner()
    out: Path = Path("x")


def start(out, *, program="detector.train", **settings):
    return Run.start(Settings(**settings), out, program)


def lines(folder, name="metrics.jsonl"):
    """Strict JSON: NaN and Infinity are refused."""

    def refuse(word):
        raise AssertionError(word)

    text = (folder / name).read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def steps(folder):
    return [line["step"] for line in lines(folder)]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deep" / "run"


def test_the_folder_says_what_was_asked(out):
    with start(out, rate=0.5) as run:
        assert run.checkpoints.is_dir() and run.pictures.is_dir() and run.folder == out
    assert load_config(Settings, out / "config.yaml") == Settings(rate=0.5)
    assert json.loads((out / "run.json").read_text())["program"] == "detector.train"


def test_figures_events_and_summary(out):
    with start(out) as run:
        run.log(1, loss=torch.tensor(1.5), count=np.int64(3), bad=float("nan"), worse=np.inf)
        run.event("warn", "loss jumped", step=1, where=Path("a"), value=float("inf"))
        run.summary({"map": torch.ones(2), "nan": float("nan"), "config": Settings()})
    (line,) = lines(out)
    assert line["loss"] == 1.5 and line["count"] == 3 and line["bad"] is line["worse"] is None
    (event,) = lines(out, "events.jsonl")
    assert event["message"] == "loss jumped"
    assert event["data"] == {"step": 1, "where": "a", "value": None}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["map"] == [1, 1] and summary["config"]["inner"] == {"depth": 2}


def test_the_same_command_resumes_and_drops_later_figures(out):
    with start(out) as run:
        for step in range(1, 6):
            run.log(step, loss=step)
            if step == 3:
                checkpoint.save(run.checkpoints, step, {}, {})
    with start(out) as run:
        assert steps(out) == [1, 2, 3]
        run.log(4, loss=0)
    assert steps(out) == [1, 2, 3, 4]


def test_a_resume_from_an_older_checkpoint_repeats_no_line(out):
    with start(out) as run:
        for step in range(1, 4):
            run.log(step, loss=step)
            checkpoint.save(run.checkpoints, step, {}, {})
    (out / "checkpoints/step-00000003/manifest.json").write_bytes(b"")
    with start(out) as run:
        found = checkpoint.load_newest(run.checkpoints, report=lambda message: None)
        assert found is not None
        run.log(found.step + 1, loss=9)
    assert steps(out) == [1, 2, 3] and lines(out)[-1]["loss"] == 9


def test_a_torn_line_harms_no_other(out):
    with start(out) as run:
        run.log(1, loss=1)
        checkpoint.save(run.checkpoints, 2, {}, {})
        run.event("info", "one")
    for name in ("metrics.jsonl", "events.jsonl"):
        with (out / name).open("a") as stream:
            stream.write('{"step": 2, "lo')
    with start(out) as run:
        run.log(2, loss=2)
        run.event("info", "two")
    assert steps(out) == [1, 2]
    events = (out / "events.jsonl").read_text().splitlines()
    assert json.loads(events[0])["message"] == "one" and json.loads(events[-1])["message"] == "two"


def test_other_settings_are_refused_by_name(out):
    start(out).close()
    with pytest.raises(UserError, match=r"\(inner.depth, rate differ\)"):
        start(out, rate=0.5, inner=Inner(depth=3))
    Run.start(Settings(out=Path("y")), out, "detector.train").close()  # `out` is free
    with Run.start(Settings(steps=9), out, "detector.train", may_change=["steps"]):
        assert from_mapping(Settings, read_yaml(out / "config.yaml")).steps == 9


def test_a_setting_that_is_newer_than_the_run_counts_by_its_default(out):
    start(out).close()
    text = (out / "config.yaml").read_text().replace("rate: 0.1\n", "")
    (out / "config.yaml").write_text(text)
    start(out).close()
    with pytest.raises(UserError, match="rate differ"):
        start(out, rate=0.2)


def test_another_program_is_refused(out):
    start(out).close()
    with pytest.raises(UserError, match="run of detector.train, not of treat.train"):
        start(out, program="treat.train")


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="thesis.tex"):
        start(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]
    with pytest.raises(UserError, match="cannot make the run folder"):
        start(tmp_path / "thesis.tex" / "run")


def test_a_prepared_or_half_begun_folder_is_taken(tmp_path):
    for name in PREPARED - {"config.yaml"}:
        (tmp_path / name).write_text("")
    (tmp_path / ".lease").write_text("")
    start(tmp_path).close()
    (tmp_path / "run.json").unlink()  # a crash between the two first files
    (tmp_path / "checkpoints").rmdir(), (tmp_path / "pictures").rmdir()
    start(tmp_path).close()
    assert (tmp_path / "run.json").exists()


def test_other_ranks_write_nothing(out, capsys):
    with Run.start(Settings(), out, "detector.train", main_process=False) as run:
        run.log(1, loss=1)
        run.event("info", "hello")
        run.summary({"a": 1})
        assert list(run.progress(range(3))) == [0, 1, 2]
    assert not out.exists() and capsys.readouterr().err == ""


OWNER = """
import sys
from pathlib import Path
from core.run import Run
from core.config import Config
class Settings(Config):
    steps: int = 3
Run.start(Settings(), Path(sys.argv[1]), "p")
run = Run.start(Settings(), Path(sys.argv[1]), "p")
print("ready", flush=True)
sys.stdin.read()
"""


def test_two_processes_never_own_one_folder(out):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match="another process is running"):
            Run.start(Settings(), out, "p")
    finally:
        owner.kill()
        owner.communicate()
    Run.start(Settings(), out, "p").close()  # the lock died with its owner


def test_tensorboard_follows(out):
    pytest.importorskip("tensorboard")
    with start(out) as run:
        run.log(1, loss=1.0)
    assert list((out / "tensorboard").iterdir())


def test_progress_shows_the_time_left(out, capsys):
    with start(out) as run:
        assert list(run.progress(range(3), total=5, initial=2, description="steps")) == [0, 1, 2]
    assert "steps" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_sets_the_flag(out, number):
    before = signal.getsignal(number)
    with start(out) as run:
        assert not run.interrupted
        os.kill(os.getpid(), number)
        assert run.interrupted
    assert signal.getsignal(number) is before
    with start(out) as again:
        assert not again.interrupted


def test_a_second_ctrl_c_stops_at_once(out):
    with start(out) as run:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        assert run.interrupted


def test_a_forgotten_run_gives_lock_and_signals_free(out):
    # A shell that starts the tests in the background has Ctrl-C ignored: here it must not be.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        start(out)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        start(out).close()
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_forked_child_dies_of_its_signal(out):
    with start(out) as run:
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(tell, b"1")  # Python forgets signals that come while it forks
            time.sleep(20)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
        assert not run.interrupted
