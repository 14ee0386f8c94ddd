"""What Ray says, or does not, in; what the launcher makes of it out. Without a Ray."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from core.errors import UserError
from launch.commands.serve import Config
from launch.folder import ask_to_stop
from launch.launchers import ray
from launch.launchers.contract import Liveness, Unreachable
from launch.launchers.ray import Ray
from tests.launch.served import until

NAME = "diffdoctor-ftjob-1-1"
ABSENT = RuntimeError("Request failed with status code 404: Job x does not exist.")


class Client:
    """Ray's, as far as it is used here: answers what it is told to, or raises it."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def _answer(self, call, *words, **named):
        self.asked.append((call, words, named))
        answer = self.answers[call]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer

    def submit_job(self, **named):
        return self._answer("submit", **named)

    def get_job_status(self, name):
        return SimpleNamespace(value=self._answer("status", name))

    def stop_job(self, name):
        return self._answer("stop", name)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "ftjob-1"
    folder.mkdir()
    return folder


def answers(monkeypatch, **said):
    client = Client(**said)
    monkeypatch.setattr(ray, "_connected", lambda address: client)
    return client


@pytest.mark.parametrize(
    ("said", "liveness"),
    [
        ("PENDING", Liveness.ALIVE),
        ("RUNNING", Liveness.ALIVE),
        ("STOPPED", Liveness.DEAD),
        ("SUCCEEDED", Liveness.DEAD),
        ("FAILED", Liveness.DEAD),
        (ABSENT, Liveness.DEAD),
        (RuntimeError("Request failed with status code 500: no agent"), Liveness.UNKNOWN),
        (ConnectionError("Failed to connect to Ray"), Liveness.UNKNOWN),
        (OSError("timed out"), Liveness.UNKNOWN),
        ("A_STATE_OF_NEXT_YEAR", Liveness.UNKNOWN),
    ],
)
def test_only_what_ray_knows_to_have_ended_is_dead(monkeypatch, folder, said, liveness):
    answers(monkeypatch, status=said)
    assert Ray().poll(folder, 1, NAME) is liveness


@pytest.mark.parametrize("handle", ["", "nonsense", "diffdoctor-ftjob-1-2", f"{NAME}\n", "../x"])
def test_a_handle_is_the_name_of_this_attempt(monkeypatch, folder, handle):
    client = answers(monkeypatch, status="SUCCEEDED", stop=True)
    assert Ray().poll(folder, 1, handle) is Liveness.UNKNOWN
    Ray().cancel(folder, 1, handle)
    assert client.asked == []
    assert Ray().poll(folder, 1, NAME) is Liveness.DEAD  # control


def test_a_head_is_not_asked_at_every_look(monkeypatch, folder):
    client, launcher = answers(monkeypatch, status="RUNNING"), Ray()
    for _ in range(10):
        launcher.poll(folder, 1, NAME)
    assert len(client.asked) == 1
    monkeypatch.setattr(ray, "EVERY", 0.0)  # control
    launcher.poll(folder, 1, NAME)
    assert len(client.asked) == 2


def test_a_folder_that_a_trainer_holds_is_alive_whatever_ray_lost(monkeypatch, folder):
    answers(monkeypatch, status=ABSENT)
    held = [True]
    monkeypatch.setattr(ray, "is_held", lambda folder, attempt: held[0])
    assert Ray().poll(folder, 1, NAME) is Liveness.ALIVE
    held[0] = False  # control
    assert Ray().poll(folder, 1, NAME) is Liveness.DEAD


def test_one_that_waits_and_is_cancelled_counts_as_ended(monkeypatch, folder):
    """Ray stops only what has begun."""
    client = answers(monkeypatch, status="PENDING", stop=True)
    assert Ray().poll(folder, 1, NAME) is Liveness.ALIVE
    for attempt, how in ((1, "pause"), (2, "cancel")):
        ask_to_stop(folder, attempt, how)
        assert Ray().poll(folder, 1, NAME) is Liveness.ALIVE
    ask_to_stop(folder, 1, "cancel")
    assert Ray().poll(folder, 1, NAME) is Liveness.DEAD
    assert Ray().recover(folder, 1) is None
    client.answers["status"] = "RUNNING"
    assert Ray().poll(folder, 1, NAME) is Liveness.ALIVE


def test_what_is_asked_of_ray(monkeypatch, folder):
    client = answers(monkeypatch, submit=NAME)
    assert Ray({"num_gpus": "2", "memory_gb": "1.5"}).submit(folder, 3) == NAME
    ((_, _, told),) = client.asked
    assert told["submission_id"] == "diffdoctor-ftjob-1-3"
    assert told["metadata"] == {"diffdoctor_job": "ftjob-1", "diffdoctor_attempt": "3"}
    taken = {name: told[f"entrypoint_{name}"] for name in ("num_cpus", "num_gpus", "memory")}
    assert taken == {"num_cpus": 1.0, "num_gpus": 2.0, "memory": 3 << 29}
    assert "runtime_env" not in told  # nothing of the service's environment


HOSTILE = ["a b", "$(id)", "`id`", "a'b", 'a"b', "a;id", "a|id", "a&&id", "-rf", "*", "é", "a\\b",
           "~", "#x", "a>b", "!x", "${HOME}", "{a,b}"]  # fmt: skip


@pytest.mark.parametrize("root", HOSTILE)
def test_no_word_of_a_root_is_more_than_a_word_to_the_shell(monkeypatch, tmp_path, root):
    folder = tmp_path / root / "ftjob-1"
    folder.mkdir(parents=True)
    told = tmp_path / "told"
    told.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    told.chmod(0o755)
    client = answers(monkeypatch, submit=NAME)
    monkeypatch.setattr(sys, "executable", str(told))
    Ray().submit(folder, 1)
    line = client.asked[0][2]["entrypoint"]
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    said = json.loads((folder / "log.txt").read_text())
    assert said == ["-P", "-m", "launch.trainer", str(folder), "1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"told", root})


@pytest.mark.parametrize("name", ["ftjob-1\n", "$(id)", "a b", "a;b", "é", "x" * 65])
def test_no_word_of_a_name_reaches_a_line(monkeypatch, tmp_path, name):
    client = answers(monkeypatch, submit=NAME)
    with pytest.raises(UserError, match="no name of a job"):
        Ray().submit(tmp_path / name, 1)
    for root in ("a\nb", "a\x1bb"):
        with pytest.raises(UserError, match="plainer --root"):
            Ray().submit(tmp_path / root / "ftjob-1", 1)
    assert client.asked == []


def test_what_ray_refuses_is_a_sentence_and_what_it_took_is_not(monkeypatch, folder):
    refused = RuntimeError("Request failed with status code 500: Traceback\n  x\nValueError: no.\n")
    answers(monkeypatch, submit=refused, status=ABSENT)
    with pytest.raises(UserError, match=r"Ray took no job \(ValueError: no.\)"):
        Ray().submit(folder, 1)
    answers(monkeypatch, submit=refused, status="PENDING")  # of a submission whose answer was lost
    assert Ray().submit(folder, 1) == NAME


def test_an_answer_that_was_lost_is_no_refusal(monkeypatch, folder):
    answers(monkeypatch, submit=OSError("connection reset"), status=["RUNNING", ABSENT])
    with pytest.raises(Unreachable, match="connection reset"):
        Ray().submit(folder, 1)
    assert Ray().recover(folder, 1) == NAME
    assert Ray().recover(folder, 1) is None
    answers(monkeypatch, status=OSError("away"))
    with pytest.raises(Unreachable):
        Ray().recover(folder, 1)


def test_a_head_that_hangs_holds_nobody_up(monkeypatch, folder):
    never = threading.Event()
    answers(monkeypatch, status=never.wait)
    monkeypatch.setattr(ray, "PATIENCE", 0.2)
    begun = time.monotonic()
    assert Ray().poll(folder, 1, NAME) is Liveness.UNKNOWN
    with pytest.raises(Unreachable, match="no answer within"):
        Ray().recover(folder, 1)
    assert time.monotonic() - begun < 5
    never.set()


def test_a_head_that_hangs_is_asked_one_question(monkeypatch, folder):
    """And by all looks together: none leaves a thread behind, or waits for another's answer."""
    never = threading.Event()
    client = answers(monkeypatch, status=never.wait)
    monkeypatch.setattr(ray, "PATIENCE", 0.1)
    monkeypatch.setattr(ray, "WAIT", 0.05)
    launcher, begun = Ray(), time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(lambda _: launcher.poll(folder, 1, NAME), range(100)))
    assert set(said) == {Liveness.UNKNOWN} and time.monotonic() - begun < 5
    assert len(client.asked) == len(asking()) == 1
    monkeypatch.setattr(ray, "LOST", 0.0)  # control: an answer that is given up
    launcher.poll(folder, 1, NAME)
    assert len(client.asked) == len(asking()) == 2
    never.set()
    until(lambda: not asking())
    client.answers["status"] = "RUNNING"
    monkeypatch.setattr(ray, "LOST", 600.0)
    assert launcher.poll(folder, 1, NAME) is Liveness.ALIVE


def test_questions_that_come_at_once_are_all_answered(monkeypatch, folder):
    answers(monkeypatch, status="RUNNING")
    monkeypatch.setattr(ray, "EVERY", 0.0)
    launcher = Ray()
    with ThreadPoolExecutor(16) as pool:
        said = set(pool.map(lambda _: launcher.poll(folder, 1, NAME), range(200)))
    assert said == {Liveness.ALIVE}


def asking():
    return [one for one in threading.enumerate() if one.name == "asks Ray"]


def test_it_is_stopped_until_it_has_ended(monkeypatch, folder):
    client = answers(monkeypatch, status=["RUNNING", "RUNNING", "STOPPED"], stop=True)
    Ray().cancel(folder, 1, NAME)
    assert [call for call, *_ in client.asked] == ["status", "stop", "status", "stop", "status"]
    client = answers(monkeypatch, status=[OSError("away"), "RUNNING", ABSENT], stop=ABSENT)
    Ray().cancel(folder, 1, NAME)
    assert [call for call, *_ in client.asked] == ["status", "status", "stop", "status"]


def test_a_machine_without_ray_is_told_of_the_extra(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[ray\]'"):
        Ray().submit(folder, 1)
    assert Ray().poll(folder, 1, NAME) is Liveness.UNKNOWN


@pytest.mark.parametrize(
    "options",
    [{"adress": "http://x"}, {"address": "ray://head:10001"}, {"address": "head:8265"},
     {"num_gpus": "all"}, {"num_cpus": "-1"}, {"num_cpus": "nan"}, {"memory_gb": "1e9"}],
)  # fmt: skip
def test_options_are_those_of_a_job(options):
    with pytest.raises(UserError):
        Ray(options)
    Ray({"address": "https://head:8265", "num_cpus": "0.5"})  # control


def test_ray_gives_out_gpus_itself(tmp_path):
    with pytest.raises(ValueError, match="num_gpus=1, not devices"):
        Config(root=tmp_path, launcher="ray", devices=("0",))
    Config(root=tmp_path, launcher="ray", ray=("num_gpus=1",))  # control
