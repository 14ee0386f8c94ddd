"""What SLURM says, or does not, in; what the launcher makes of it out. Without a SLURM."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from submitit.slurm import slurm as theirs

from core.errors import UserError
from launch.launchers import slurm
from launch.launchers.contract import Liveness
from launch.launchers.slurm import Slurm, Unreachable

FOLDER = Path("/nowhere/ftjob-1")


def says(monkeypatch, answer):
    def ask(*words):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(slurm, "_ask", ask)


@pytest.mark.parametrize(
    ("answer", "liveness"),
    [
        ("RUNNING\n", Liveness.ALIVE),
        ("PENDING\n", Liveness.ALIVE),
        ("SUSPENDED\n", Liveness.ALIVE),
        ("COMPLETED\n", Liveness.DEAD),
        ("TIMEOUT\n", Liveness.DEAD),
        ("", Liveness.DEAD),
        (Unreachable("slurm_load_jobs error: Invalid job id specified"), Liveness.DEAD),
        (Unreachable("Unable to contact slurm controller (connect failure)"), Liveness.UNKNOWN),
        (Unreachable(""), Liveness.UNKNOWN),
        ("A_STATE_OF_NEXT_YEAR\n", Liveness.UNKNOWN),
        ("RUNNING\nFAILED\n", Liveness.UNKNOWN),
    ],
)
def test_only_what_slurm_knows_to_have_ended_is_dead(monkeypatch, answer, liveness):
    says(monkeypatch, answer)
    assert Slurm().poll(FOLDER, 1, "7") is liveness


@pytest.mark.parametrize("handle", ["", "x", "7;8", "-1", "7\n", "٧", "--me"])
def test_a_handle_is_a_number(monkeypatch, handle):
    says(monkeypatch, "COMPLETED")
    assert Slurm().poll(FOLDER, 1, handle) is Liveness.UNKNOWN
    Slurm().cancel(FOLDER, 1, handle)


def test_a_controller_is_not_asked_at_every_look(monkeypatch):
    asked = []

    def ask(*words):
        asked.append(words)
        return "RUNNING"

    monkeypatch.setattr(slurm, "_ask", ask)
    launcher = Slurm()
    for _ in range(10):
        launcher.poll(FOLDER, 1, "7")
    assert len(asked) == 1
    monkeypatch.setattr(slurm, "EVERY", 0.0)  # control
    launcher.poll(FOLDER, 1, "7")
    assert len(asked) == 2


def test_a_folder_that_a_trainer_holds_is_alive_whatever_slurm_lost(monkeypatch, tmp_path):
    says(monkeypatch, Unreachable("Invalid job id specified"))
    held = [True]
    monkeypatch.setattr(slurm, "is_held", lambda folder, attempt: held[0])
    assert Slurm().poll(tmp_path, 1, "7") is Liveness.ALIVE
    held[0] = False  # control
    assert Slurm().poll(tmp_path, 1, "8") is Liveness.DEAD


NAMES = ["ftjob-1\n#SBATCH --wrap=id", "\n", "ftjob-1'; id; '", "$(id)", "a b", "a%j", "é" * 3]


@pytest.mark.parametrize("name", NAMES)
def test_no_word_of_a_name_reaches_a_line_of_the_script(tmp_path, name):
    for folder in (tmp_path / name, tmp_path / f"x{name}y"):
        with pytest.raises(UserError, match="no name of a job"):
            Slurm().submit(folder, 1)


@pytest.mark.parametrize("root", ["a\nb", "a%jb", "a\\b", "a\x1bb"])
def test_a_root_that_slurm_would_misread_is_refused(tmp_path, root):
    with pytest.raises(UserError, match="plainer --root"):
        Slurm().submit(tmp_path / root / "ftjob-1", 1)


def test_control_a_newline_in_a_name_is_a_line_of_the_script():
    script = theirs._make_sbatch_string("true", "x", job_name="a\n#SBATCH --comment=evil")
    assert any(line.startswith("#SBATCH --comment=evil") for line in script.splitlines())


@pytest.mark.parametrize("options", [{"setup": "id"}, {"job_name": "x"}, {"partition": "a\nb"}])
def test_options_are_words_and_not_ours(options):
    with pytest.raises(UserError):
        Slurm(options)
    Slurm({"partition": "gpu", "time": "5"})  # control


def test_a_machine_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", none)
    monkeypatch.setenv("PATH", "/nowhere")
    folder = tmp_path / "ftjob-1"
    folder.mkdir()
    with pytest.raises(UserError, match="SLURM took no job"):
        Slurm().submit(folder, 1)
    assert Slurm().poll(folder, 1, "7") is Liveness.UNKNOWN
    with pytest.raises(Unreachable):
        Slurm().recover(folder, 1)


def test_a_controller_that_is_away_refuses_nothing(monkeypatch, tmp_path):
    """The job waits until it answers, and is not failed meanwhile."""
    folder = tmp_path / "ftjob-1"
    folder.mkdir()
    program(tmp_path, monkeypatch, "srun", "exit 1")  # submitit wants it to be there
    for said, fault in (
        ("Unable to contact slurm controller (connect failure)", Unreachable),
        ("Socket timed out on send/recv operation", Unreachable),
        ("Zero Bytes were transmitted or received", Unreachable),
        ("Message receive failure", Unreachable),
        ("Invalid partition name specified", UserError),
    ):
        failed = f"sbatch: error: Batch job submission failed: {said}"
        program(tmp_path, monkeypatch, "sbatch", f"echo '{failed}' >&2\nexit 1")
        with pytest.raises(fault, match=said.split("(")[0]):
            Slurm().submit(folder, 1)


def test_a_submission_that_takes_too_long_may_have_been_taken(monkeypatch, tmp_path):
    """The queue's one worker goes on; `recover` finds the job by its name."""
    folder = tmp_path / "ftjob-1"
    folder.mkdir()
    monkeypatch.setattr(slurm, "PATIENCE", 0.3)
    program(tmp_path, monkeypatch, "srun", "exit 1")
    program(tmp_path, monkeypatch, "sbatch", "exec sleep 30")
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="timed out"):
        Slurm().submit(folder, 1)
    assert time.monotonic() - begun < 10
    program(tmp_path, monkeypatch, "squeue", "echo $4 | sed 's/--name=diffdoctor-ftjob-1-1/7/'")
    assert Slurm().recover(folder, 1) == "7"
    program(tmp_path, monkeypatch, "squeue", "true")
    assert Slurm().recover(folder, 1) is None  # control
    program(tmp_path, monkeypatch, "sbatch", "echo words")
    with pytest.raises(Unreachable):
        Slurm().submit(folder, 1)
    program(
        tmp_path,
        monkeypatch,
        "sbatch",
        'grep -q "exec .*launch.trainer" "$1" && echo Submitted batch job 8',
    )
    assert Slurm().submit(folder, 1) == Slurm().recover(folder, 1) == "8"


def test_a_controller_that_hangs_holds_up_half_of_the_looks(monkeypatch, tmp_path):
    monkeypatch.setattr(slurm, "PATIENCE", 2)
    program(tmp_path, monkeypatch, "squeue", "exec sleep 30")
    took = []

    def look(_):
        begun = time.monotonic()
        assert Slurm().poll(FOLDER, 1, "7") is Liveness.UNKNOWN
        took.append(time.monotonic() - begun)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(look, range(16)))
    assert sum(one < 1.5 for one in took) == 8
    program(tmp_path, monkeypatch, "squeue", "echo RUNNING")  # control
    assert Slurm().poll(FOLDER, 1, "7") is Liveness.ALIVE


def program(folder, monkeypatch, name, script):
    """Put one before all others of its name."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")


def none(*words, **options):
    raise FileNotFoundError("no such program")
