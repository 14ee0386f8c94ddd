"""The service as a process: driven by the public openai client, killed, started again."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from launch.client import Client
from launch.folder import Lease, start_ticks
from tests.launch.served import Served, until

IDLE = 150
"""Megabytes."""


@pytest.fixture(scope="module")
def words():
    """Gives each service's further words: its database, its launcher."""
    return list


@pytest.fixture(scope="module")
def served(tmp_path_factory, words):
    base = tmp_path_factory.mktemp("served")
    served = Served(base, "--slots", "2", "--models", f"thing={base}", *words())
    yield served
    served.stop()


@pytest.fixture
def jobs(served):
    return served.openai.fine_tuning.jobs


def test_the_public_client_uploads_creates_lists_and_downloads(served, jobs):
    prompts = served.openai.files.create(file=("p.txt", b"a hand\n"), purpose="fine-tune")
    made = jobs.create(
        model="thing",
        training_file=prompts.id,
        method={"type": "toy", "toy": {"steps": 4}},
        metadata={"who": "ada"},
        suffix="first",
    )
    assert (made.status, made.model, made.training_file) == (
        "validating_files",
        "thing",
        prompts.id,
    )
    done = served.ends(made.id)
    assert done.status == "succeeded" and done.finished_at >= done.created_at
    assert done.fine_tuned_model == f"ft:toy:first:{made.id}" and done.metadata == {"who": "ada"}
    assert next(iter(jobs.list())).id == made.id
    assert [one.id for one in jobs.list(limit=1).data] == [made.id]
    summary, thing = done.result_files
    assert served.openai.files.content(summary).json() == {"steps": 4}
    assert served.openai.files.retrieve(thing).filename == "made/thing.txt"
    saved = jobs.checkpoints.list(made.id).data
    assert [one.step_number for one in saved] == [4, 3, 2, 1] and saved[0].metrics.loss == 0.25
    assert served.openai.models.retrieve(done.fine_tuned_model).owned_by == "local"
    assert [one.id for one in served.openai.models.list()][0] == "thing"
    # what it made is named by a later job; the file is no longer in use
    later = jobs.create(
        model="", training_file="", method={"type": "toy", "toy": {"other": done.fine_tuned_model}}
    )
    served.ends(later.id)
    folder = json.loads((served.root / "jobs" / later.id / "job.json").read_text())
    assert folder["programs"][0]["settings"]["other"] == str(served.root / "jobs" / made.id)
    assert served.openai.files.delete(prompts.id).deleted
    with pytest.raises(openai.NotFoundError):
        served.openai.files.retrieve(prompts.id)


def test_it_pages_through_jobs_and_events(served, jobs):
    made = served.create(steps=25, seconds=0.01)
    served.ends(made.id)
    messages = [event.message for event in jobs.list_events(made.id, limit=7)]
    assert len(messages) == len(set(messages)) == 25 + 5
    assert messages[-1].startswith("the job is created") and messages[0].endswith("has finished")


def test_pause_and_resume_is_the_same_job(served, jobs):
    made = served.create(steps=60, seconds=0.1)
    served.steps(made.id, 3)
    asked = jobs.pause(made.id)
    assert asked.status == "running" and asked.pausing
    paused = served.ends(made.id, {"paused"})
    assert not paused.pausing and paused.finished_at is None
    time.sleep(0.5)
    assert served.trainers() == []
    saved = jobs.checkpoints.list(made.id).data[0].step_number
    assert jobs.resume(made.id).status == "queued"
    assert served.ends(made.id).status == "succeeded"
    said = served.events(made.id)
    assert f"goes on after step {saved}" in said and "attempt 2 begins" in said
    assert sum(one.startswith("step ") for one in said) == 60  # each once


def test_one_set_of_pictures_a_wish_of_a_job_that_runs(served, jobs):
    def ask(wish, job_id):
        return served.http.post(f"/v1/fine_tuning/jobs/{job_id}/{wish}")

    def drawn(job_id):
        return sum("drew step" in one for one in served.events(job_id))

    made = served.create(steps=60, seconds=0.2, pictures=True)
    served.steps(made.id, 2)
    for number in (2, 3):  # step 1 draws by itself
        assert ask("sample", made.id).json()["status"] == "running"
        until(lambda number=number: drawn(made.id) == number, 20)
    served.steps(made.id, jobs.retrieve(made.id).step + 3)
    assert drawn(made.id) == 3
    assert ask("save", made.id).is_success
    assert sum(one.startswith("asked for ") for one in served.events(made.id)) == 3
    jobs.cancel(made.id)
    refused = ask("sample", made.id)
    assert refused.status_code == 400 and "cancelled" in refused.json()["error"]["message"]


def test_cancel_is_at_once_and_for_good(served, jobs):
    made = served.create(steps=600, seconds=0.1)
    served.steps(made.id, 1)
    assert jobs.cancel(made.id).status == "cancelled"
    until(lambda: not served.trainers(), 20)
    assert jobs.cancel(made.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="create a new one"):
        jobs.resume(made.id)
    with pytest.raises(openai.NotFoundError):
        jobs.cancel("ftjob-" + 24 * "0")


def test_a_paused_queued_job_waits_until_it_is_resumed(served, jobs):
    busy = [served.create(steps=600, seconds=0.1) for _ in range(2)]
    waits = served.create()
    for one in busy:
        served.ends(one.id, {"running"})
    served.ends(waits.id, {"queued"})
    assert jobs.pause(waits.id).status == "paused"
    for one in busy:
        jobs.cancel(one.id)
    time.sleep(1.5)
    assert jobs.retrieve(waits.id).status == "paused"
    jobs.resume(waits.id)
    assert served.ends(waits.id).status == "succeeded"


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("error", "program_failed", "the toy is broken; buy another."),
        ("crash", "program_failed", ""),
        ("lie", "no_result", "made no summary.json"),
        ("kill", "trainer_lost", "its trainer has died"),
    ],
)
def test_a_failure_says_why(served, jobs, fault, code, message):
    made = served.create(fault=fault, seconds=0)
    failed = served.ends(made.id)
    assert failed.attempt == (3 if fault == "kill" else 1)
    assert (failed.status, failed.error.code) == ("failed", code)
    assert message in failed.error.message and failed.result_files == []


def test_news_stream_from_any_place(served):
    made = served.create(steps=8)
    with Client(f"http://127.0.0.1:{served.port}") as client:
        events = list(client.watch(made.id))
        assert [event["message"] for event in events] == served.events(made.id)
        third = events[2]["id"]
        assert list(client.watch(made.id, third)) == events[3:]
    address = f"/v1/fine_tuning/jobs/{made.id}/events"
    text = served.http.get(address, params={"stream": "true", "after": events[-1]["id"]}).text
    assert text == "event: done\ndata: [DONE]\n\n"


def test_a_dry_run_makes_nothing(served, jobs):
    before = len(list(jobs.list(limit=100)))
    told = jobs.create(
        model="",
        training_file="",
        method={"type": "toy", "toy": {"steps": 7}},
        extra_body={"dry_run": True},
    )
    assert told.object == "fine_tuning.job.dry_run" and told.hyperparameters.steps == 7
    assert len(list(jobs.list(limit=100))) == before


@pytest.mark.parametrize(
    ("settings", "param", "said"),
    [
        ({"stepps": 3}, "stepps", "did you mean 'steps'"),
        ({"steps": 0}, "steps", "greater than or equal"),
        ({"command": ["sh"]}, "command", "cannot be set over HTTP"),
        ({"out": "/tmp/x"}, "out", "the service's to choose"),
        ({"prompts": "/etc/passwd"}, "prompts", "no id of a file"),
        ({"other": "file-" + 24 * "0"}, "other", "upload it first"),
        ({"data": ["thing", "../x"]}, "data", "no id of a file"),
        ({"base": "someone/model"}, "base", "no models from a hub"),
    ],
)
def test_wrong_settings_are_refused_at_once(jobs, settings, param, said):
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        jobs.create(model="", training_file="", method={"type": "toy", "toy": settings})
    assert refused.value.param == param


def test_one_key_makes_one_job_however_often_it_comes(served):
    body = {"method": {"type": "toy", "toy": {"steps": 1}}}
    headers = {"idempotency-key": f"key-{time.time()}"}

    def post(steps=1):
        body["method"]["toy"]["steps"] = steps
        return served.http.post("/v1/fine_tuning/jobs", json=body, headers=headers)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: post(), range(24)))
    assert {one.status_code for one in answers} == {200}
    assert len({one.json()["id"] for one in answers}) == 1
    assert post(steps=2).json()["error"]["code"] == "idempotency_key_reused"
    served.ends(answers[0].json()["id"])


def test_the_server_is_small_and_without_torch(served):
    pid = served.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    megabytes = int(status.split("VmRSS:")[1].split()[0]) / 1000
    print(f"{megabytes:.0f} MB after all this")
    assert megabytes < IDLE
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()


def test_errors_are_in_one_shape(served):
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/fine_tuning/jobs", 405),
        ("GET", "/v1/fine_tuning/jobs?limit=0", 400),
        ("POST", "/v1/fine_tuning/jobs", 400),
        ("GET", "/v1/files/file-none", 404),
    ):
        answer = served.http.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# Faults


@pytest.fixture
def alone(tmp_path, words):
    served = Served(tmp_path, *words())
    yield served
    for job in served.openai.fine_tuning.jobs.list(limit=100).data:
        if job.status not in ("succeeded", "failed", "cancelled"):
            served.http.post(f"/v1/fine_tuning/jobs/{job.id}/cancel")  # it may end just now
    until(lambda: not served.trainers(), 20)
    served.stop()


def test_killed_and_started_again_it_adopts_the_trainer(alone):
    made = alone.create(steps=80, seconds=0.25)
    waits = alone.create(steps=2)
    alone.steps(made.id, 2)
    lease = Lease.read(alone.root / "jobs" / made.id)
    alone.kill()
    time.sleep(1)
    assert start_ticks(lease.pid) == lease.start  # it outlives the server
    alone.start()
    assert alone.openai.fine_tuning.jobs.retrieve(made.id).status == "running"
    assert alone.trainers() == [lease.pid]
    done = alone.ends(made.id)
    assert (done.status, done.attempt, done.step) == ("succeeded", 1, 80)
    assert alone.ends(waits.id).status == "succeeded"
    said = alone.events(made.id)
    assert sum(one.startswith("step ") for one in said) == 80  # none lost, none twice


def test_a_trainer_that_died_without_a_server_is_started_again(alone):
    made = alone.create(steps=40, seconds=0.1)
    alone.steps(made.id, 3)
    alone.kill()
    os.kill(Lease.read(alone.root / "jobs" / made.id).pid, 9)
    alone.start()
    done = alone.ends(made.id)
    assert (done.status, done.attempt) == ("succeeded", 2)
    assert any("ended without a word" in one for one in alone.events(made.id))


def test_what_was_acknowledged_exists_after_a_kill(alone):
    made = [alone.create(steps=1, seconds=0).id for _ in range(5)]
    alone.kill()
    alone.start()
    assert {alone.ends(one).status for one in made} == {"succeeded"}
    assert {alone.openai.fine_tuning.jobs.retrieve(one).attempt for one in made} == {1}


def test_asked_to_stop_it_leaves_trainers_and_ends_streams(alone):
    made = alone.create(steps=200, seconds=0.1)
    alone.steps(made.id, 1)
    with Client(f"http://127.0.0.1:{alone.port}") as client:
        events = client.watch(made.id)
        next(events)
        begun = time.monotonic()
        assert alone.stop() == 0 and time.monotonic() - begun < 8
        (trainer,) = alone.trainers()
        alone.start()
        assert alone.trainers() == [trainer]
        seen = [event["message"] for event in events]  # the client takes the stream up again
    assert seen[-1] == "attempt 1 has finished"
    assert sum(one.startswith("step ") for one in seen) == 200


def test_one_service_a_root(alone):
    command = [sys.executable, "-m", "tests.launch.serving", "--root", str(alone.root)]
    done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and "another service runs on" in done.stderr


def test_beyond_this_machine_it_does_not_start_without_a_token(tmp_path):
    command = [sys.executable, "-m", "tests.launch.serving", "--root", str(tmp_path / "root")]
    done = subprocess.run(
        [*command, "--port", "0", "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "diffdoctor token create" in done.stderr
