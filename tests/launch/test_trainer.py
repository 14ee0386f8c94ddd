"""A trainer in its folder, and the local launcher by the contract that all launchers have."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import launch.many
import launch.trainer
from core.config import from_mapping, read_yaml
from core.errors import UserError
from core.run import PAUSED
from launch import folder as files
from launch.commands import serve
from launch.folder import Job, Lease, Outcome, Program, ask_to_stop
from launch.launchers import LAUNCHERS, Liveness
from launch.trainer import STALE
from tests.launch.toy import Config

TWO = {
    **read_yaml(Path(__file__).parents[2] / "accelerate_configs/many_gpus.yaml"),
    "num_processes": 2,
}


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "ftjob-1"
    folder.mkdir()
    return folder


def prepare(folder, attempt=1, programs=1, layout=None, **settings):
    values = from_mapping(Config, {"out": folder, **settings}).model_dump(mode="json")
    program = Program("tests.launch.toy", [], values, layout or {})
    Job(folder.name, attempt, [program] * programs).write(folder)


def wait(what, seconds=60.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    pytest.fail(f"{what} stayed {what()!r} for {seconds} s")


def train(folder, attempt=1):
    """A trainer of our own, without a launcher."""
    words = [sys.executable, "-m", "launch.trainer", str(folder), str(attempt)]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log)


def lives(pid):
    return files.start_ticks(pid) is not None


# The trainer


def test_paused_means_the_same_everywhere():
    assert launch.trainer.PAUSED == PAUSED


def test_a_run_and_its_outcome(run_folder):
    prepare(run_folder)
    trainer = train(run_folder)
    assert trainer.wait() == 0
    outcome = Outcome.read(run_folder, 1)
    assert (outcome.code, outcome.stopped, outcome.error) == (0, False, "")
    assert json.loads((run_folder / "summary.json").read_text()) == {"steps": 5}
    lease = Lease.read(run_folder)
    assert (lease.pid, lease.attempt) == (trainer.pid, 1) and lease.boot == files.boot_id()
    assert Outcome.read(run_folder, 2) is None  # says nothing of another attempt


def test_a_failure_is_told_in_its_own_words(run_folder):
    prepare(run_folder, fault="error", programs=2)  # the second is not run
    assert train(run_folder).wait() == 2
    outcome = Outcome.read(run_folder, 1)
    assert (outcome.code, outcome.stopped) == (2, False)
    assert outcome.error == "the toy is broken; buy another."
    assert (run_folder / "log.txt").read_text().count("broken") == 1


def test_pause_saves_and_another_attempt_goes_on(run_folder):
    prepare(run_folder, steps=200)
    trainer = train(run_folder)
    wait((run_folder / "checkpoints/step-00000002").is_dir)
    ask_to_stop(run_folder, 7, "pause")  # of another attempt
    time.sleep(0.5)
    assert trainer.poll() is None
    ask_to_stop(run_folder, 1, "pause")
    assert trainer.wait() == PAUSED
    outcome = Outcome.read(run_folder, 1)
    assert outcome.stopped and outcome.code == PAUSED
    saved = len(list((run_folder / "checkpoints").iterdir()))
    prepare(run_folder, attempt=2, steps=saved + 2)
    assert train(run_folder, 2).wait() == 0
    assert f"goes on after step {saved}" in (run_folder / "events.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_is_passed_on_also_before_the_program_listens(run_folder, number):
    prepare(run_folder, steps=200)
    trainer = train(run_folder)
    wait(lambda: Lease.read(run_folder))
    time.sleep(0.1)
    trainer.send_signal(number)
    trainer.wait(20)
    assert Outcome.read(run_folder, 1).stopped


def test_a_program_that_has_missed_the_first_word_is_asked_again(run_folder):
    prepare(run_folder, fault="half deaf", steps=1000)
    trainer = train(run_folder)
    program = wait(lambda: children(trainer.pid))[0]
    wait(lambda: caught(program, signal.SIGUSR1))
    ask_to_stop(run_folder, 1, "pause")
    assert trainer.wait() == PAUSED
    assert Outcome.read(run_folder, 1).stopped


def caught(pid, number):
    """Has the toy a handler for a signal? Before it is the toy, it has those of its trainer."""
    if b"tests.launch.toy" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        return False
    said = Path(f"/proc/{pid}/status").read_text().split("SigCgt:")[1].split()[0]
    return int(said, 16) >> (number - 1) & 1


def test_a_program_that_dies_is_no_pause(run_folder):
    prepare(run_folder, fault="crash")
    assert train(run_folder).wait() == 7
    outcome = Outcome.read(run_folder, 1)
    assert (outcome.code, outcome.stopped) == (7, False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGRTMIN + 6])
def test_a_program_that_was_ended_by_a_signal_says_by_which(run_folder, number):
    prepare(run_folder, steps=1000)
    trainer = train(run_folder)
    program = wait(lambda: children(trainer.pid))[0]
    wait(lambda: (run_folder / "metrics.jsonl").exists())
    os.kill(int(program), number)
    trainer.wait()
    found = Outcome.read(run_folder, 1)
    assert found.code == -number and not found.stopped
    assert found.error.startswith(f"it was ended by signal {int(number)}")


def test_a_stale_trainer_does_nothing(run_folder):
    prepare(run_folder, attempt=2)
    assert train(run_folder, 1).wait() == STALE
    assert not (run_folder / "lease.json").exists() and not (run_folder / "run.json").exists()


def test_one_that_was_cancelled_before_it_began_does_nothing(run_folder):
    prepare(run_folder)
    ask_to_stop(run_folder, 1, "cancel")
    assert train(run_folder).wait() == STALE
    assert Outcome.read(run_folder, 1) is None and not (run_folder / "run.json").exists()
    ask_to_stop(run_folder, 7, "cancel")  # control: of another attempt
    assert train(run_folder).wait() == 0


def test_of_two_trainers_one_works(run_folder):
    prepare(run_folder, steps=100, seconds=0.1)
    first = train(run_folder)
    wait(lambda: Lease.read(run_folder))
    second = train(run_folder)
    assert second.wait(20) == STALE and first.poll() is None
    assert Lease.read(run_folder).pid == first.pid
    first.kill()
    first.wait()


def test_what_a_trainer_started_dies_with_it(run_folder):
    prepare(run_folder, steps=400)
    trainer = train(run_folder)
    wait((run_folder / "checkpoints/step-00000001").is_dir)
    program = int(children(trainer.pid)[0])
    trainer.kill()
    trainer.wait()
    wait(lambda: not lives(program), 5)
    assert Outcome.read(run_folder, 1) is None


@pytest.mark.slow
def test_several_processes_die_with_the_trainer_and_fail_with_their_own_words(run_folder):
    prepare(run_folder, layout=TWO, gloo=True, steps=2000)
    trainer = train(run_folder)
    pids = [wait(lambda rank=rank: said_by(run_folder, rank), 120)["pid"] for rank in range(2)]
    trainer.kill()
    trainer.wait()
    wait(lambda: not any(map(lives, pids)), 5)
    prepare(run_folder, attempt=2, layout=TWO, fault="error")
    assert train(run_folder, 2).wait() == 2
    assert Outcome.read(run_folder, 2).error == "the toy is broken; buy another."


def test_a_signal_that_comes_before_any_process_has_begun_is_not_lost(monkeypatch):
    left = []
    monkeypatch.setattr(launch.many, "children", list)
    monkeypatch.setattr(launch.many.os, "_exit", left.append)
    launch.many.pass_on(signal.SIGUSR1, None)
    assert left == [128 + signal.SIGUSR1]  # which the trainer takes for a stop that it asked for


def test_a_reminder_to_pause_that_comes_at_the_end_kills_nobody(tmp_path):
    """The trainer repeats itself while Python ends; whoever starts several processes has none."""
    (tmp_path / "layout.yaml").write_text("compute_environment: LOCAL_MACHINE\nuse_cpu: true\n")
    program = (
        "import os, signal, accelerate.commands.launch, launch.many\n"
        "accelerate.commands.launch.launch_command = lambda arguments: None\n"
        "code = launch.many.main(['layout.yaml', 'tests.launch.toy'])\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "raise SystemExit(code)\n"
    )
    where = {**os.environ, "PYTHONPATH": str(Path(launch.many.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=where, check=False)
    assert ended.returncode == 0


def test_what_a_program_leaves_behind_ends_with_it(run_folder):
    prepare(run_folder, fault="orphan")
    assert train(run_folder).wait() == 0
    wait(lambda: not lives(int((run_folder / "orphan").read_text())), 5)


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_job_files_of_others_are_refused(run_folder):
    with pytest.raises(UserError, match="job.json"):
        Job.read(run_folder)
    (run_folder / "job.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="job.json"):
        Job.read(run_folder)
    for text in ("", "[]", "{", '{"pid": 1}', '{"attempt": 1, "more": 2}'):
        (run_folder / "lease.json").write_text(text)
        (run_folder / "outcome.json").write_text(text)
        assert Lease.read(run_folder) is None and Outcome.read(run_folder, 1) is None


# Every launcher


@pytest.fixture(params=["local"])
def launcher(request):
    return LAUNCHERS[request.param]()


def test_contract_it_lives_until_it_ends(launcher, run_folder):
    prepare(run_folder, steps=10)
    handle = launcher.submit(run_folder, 1)
    assert launcher.poll(run_folder, 1, handle) is Liveness.ALIVE
    wait(lambda: launcher.poll(run_folder, 1, handle) is Liveness.DEAD)
    assert Outcome.read(run_folder, 1).code == 0
    launcher.cancel(run_folder, 1, handle)  # nothing lives: nothing happens


def test_contract_cancel_ends_all_of_it(launcher, run_folder):
    prepare(run_folder, fault="deaf")
    handle = launcher.submit(run_folder, 1)
    lease = wait(lambda: Lease.read(run_folder))
    program = int(wait(lambda: children(lease.pid))[0])
    launcher.cancel(run_folder, 1, handle)
    assert launcher.poll(run_folder, 1, handle) is Liveness.DEAD
    assert not lives(lease.pid) and not lives(program)


def test_contract_another_process_recovers_it(launcher, run_folder):
    assert launcher.recover(run_folder, 1) is None
    prepare(run_folder, steps=400)
    handle = launcher.submit(run_folder, 1)
    other = type(launcher)()
    # Perhaps before the lease; while a process becomes another, Linux shows no words of either.
    early = wait(lambda: other.recover(run_folder, 1), 5)
    assert other.poll(run_folder, 1, early) is Liveness.ALIVE
    wait(lambda: Lease.read(run_folder))
    late = other.recover(run_folder, 1)
    assert other.poll(run_folder, 1, late) is Liveness.ALIVE
    assert other.recover(run_folder, 2) is None
    launcher.cancel(run_folder, 1, handle)
    wait(lambda: other.poll(run_folder, 1, late) is Liveness.DEAD)


def test_contract_several_processes_pause_and_end_as_one(launcher, run_folder):
    for attempt in (1, 2):
        for path in run_folder.glob("rank-*.json"):
            path.unlink()
        prepare(run_folder, attempt, layout=TWO, gloo=True, steps=2000)
        handle = launcher.submit(run_folder, attempt)
        found = [wait(lambda rank=rank: said_by(run_folder, rank), 120) for rank in range(2)]
        assert [one["added"] for one in found] == [[2.0, 1.0]] * 2  # each knows of the other
        assert {one["backend"] for one in found} == {"gloo"}
        if attempt == 1:
            ask_to_stop(run_folder, 1, "pause")
            outcome = wait(lambda: Outcome.read(run_folder, 1))
            assert (outcome.code, outcome.stopped) == (PAUSED, True)
        else:
            launcher.cancel(run_folder, 2, handle)
        wait(lambda pids=[one["pid"] for one in found]: not any(map(lives, pids)), 10)


def said_by(folder, rank):
    return files.read_json(folder / f"rank-{rank}.json")


def test_contract_what_cannot_be_known_is_unknown(launcher, run_folder):
    assert launcher.poll(run_folder, 1, "nonsense") is Liveness.UNKNOWN


def test_another_machine_or_another_boot(run_folder):
    local = LAUNCHERS["local"]()
    mine = {"host": files.host(), "boot": files.boot_id(), "pid": os.getpid()}
    start = files.start_ticks(os.getpid())
    here = {**mine, "start": start}
    assert local.poll(run_folder, 1, json.dumps(here)) is Liveness.ALIVE
    for name, value, said in (
        ("host", "elsewhere", Liveness.UNKNOWN),
        ("boot", "before", Liveness.DEAD),
        ("start", start - 1, Liveness.DEAD),  # the number went to another process
    ):
        assert local.poll(run_folder, 1, json.dumps({**here, name: value})) is said


def test_no_secret_of_the_service_reaches_a_trainer(run_folder, monkeypatch):
    monkeypatch.setenv("DIFFDOCTOR_TOKEN", "sesame")
    monkeypatch.setenv("PGPASSWORD", "sesame")
    monkeypatch.setenv("HARMLESS", "seen")  # control
    prepare(run_folder, steps=100)
    local = LAUNCHERS["local"]()
    handle = local.submit(run_folder, 1)
    pid = json.loads(handle)["pid"]
    environment = wait(Path(f"/proc/{pid}/environ").read_bytes, 5)
    assert b"sesame" not in environment and b"HARMLESS=seen" in environment
    local.cancel(run_folder, 1, handle)


# What the operator says of it


@pytest.mark.parametrize(
    "said",
    [
        {"distributed_type": "NO"},  # one process
        {"distributed_type": "MULTI_CPU"},  # mpirun's
        {"num_machines": 2},
        {"num_processes": 1},
        {"num_processes": "2"},
    ],
)
def test_a_layout_is_of_several_processes_of_one_machine(tmp_path, said):
    file = tmp_path / "layout.yaml"
    file.write_text(yaml.safe_dump({**TWO, **said}))
    with pytest.raises(ValueError, match="layout.yaml"):
        serve.Config(root=tmp_path, accelerate=file)
    file.write_text(yaml.safe_dump(TWO))  # control
    assert serve.layout(serve.Config(root=tmp_path, accelerate=file).accelerate) == TWO
