"""Service and trainers killed at any moment: what was acknowledged exists, ends once, and right."""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from launch import folder as files
from launch.folder import Lease
from launch.service import tables as t
from launch.service.database import Database
from launch.service.service import default_db
from launch.service.states import LIMIT
from tests.launch.forking import Forks
from tests.launch.served import ENDED, Served, until

JOBS = "/v1/fine_tuning/jobs"
ROUNDS = 25
"""Kills of a service after which the next one gets an empty root: the queue only grows."""


@pytest.fixture(scope="module")
def forks():
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def draw():
    drawn = int.from_bytes(os.urandom(4))
    print(f"seed {drawn}")
    return random.Random(drawn)


# S1: killed while jobs are submitted


class Submitter(threading.Thread):
    """Submits jobs one after the other; repeats each, by its key, until it is acknowledged."""

    def __init__(self, served, name):
        super().__init__(daemon=True)
        self.served, self.name = served, name
        self.acknowledged: dict[str, str] = {}
        self.unheard = 0
        self.stopping = threading.Event()

    def run(self):
        body = {"method": {"type": "toy", "toy": {"steps": 1}}}
        while not self.stopping.is_set():
            key = f"{self.name}-{len(self.acknowledged)}"
            headers = {"idempotency-key": key}
            try:
                address = f"http://127.0.0.1:{self.served.port}{JOBS}"
                answer = httpx2.post(address, json=body, headers=headers, timeout=10)
            except httpx2.TransportError:
                self.unheard += 1
                time.sleep(0.01)
                continue
            assert answer.status_code in (200, 503), answer.text
            if answer.is_success:
                self.acknowledged[key] = answer.json()["id"]


def rows_of(served, table):
    database = Database(default_db(served.root))
    try:
        with database.read() as c:
            return [dict(one) for one in c.execute(sa.select(table)).mappings()]
    finally:
        database.close()


def lost_and_doubled(acknowledged, served):
    """Acknowledged jobs that are not there, and keys that made two."""
    made = Counter(one["id"] for one in rows_of(served, t.jobs))
    keyed = {one["key"]: one["job_id"] for one in rows_of(served, t.idempotency)}
    lost = {one for one in acknowledged.values() if one not in made}
    return lost, set(made) - set(keyed.values())


def killed_under_load(forks, base, kills, draw):
    """All that was acknowledged, and what is lost of it or was made twice."""
    base.mkdir()
    served = Served(base, "--slots", "1", forks=forks)
    served.http.post(JOBS, json={"method": {"type": "toy", "toy": {"fault": "deaf"}}},
                     headers={"idempotency-key": "holds the slot"})  # fmt: skip
    crowd = [Submitter(served, f"{base.name}-{i}") for i in range(3)]
    for one in crowd:
        one.start()
    try:
        for _ in range(kills):
            before = sum(len(one.acknowledged) for one in crowd)
            until(lambda n=before: sum(len(one.acknowledged) for one in crowd) > n)
            time.sleep(draw.random() * 0.2)
            served.kill()
            served.start()
    finally:
        for one in crowd:
            one.stopping.set()
        for one in crowd:
            one.join()
    acknowledged = {key: job for one in crowd for key, job in one.acknowledged.items()}
    unheard = sum(one.unheard for one in crowd)
    lost, doubled = lost_and_doubled(acknowledged, served)
    for job in draw.sample(sorted(acknowledged.values()), 3):
        assert served.openai.fine_tuning.jobs.retrieve(job).id == job
    served.kill()
    end_all(served)
    return acknowledged, lost, doubled, unheard


def end_all(served):
    """No trainer of a service that is gone goes on."""
    for pid in served.trainers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kills", [4, pytest.param(500, marks=pytest.mark.trial)])
def test_what_was_acknowledged_exists_once_however_often_the_service_is_killed(
    forks, tmp_path, kills, draw
):
    acknowledged, unheard = 0, 0
    for turn, left in enumerate(range(kills, 0, -ROUNDS)):
        made, lost, doubled, silent = killed_under_load(
            forks, tmp_path / str(turn), min(left, ROUNDS), draw
        )
        assert (lost, doubled) == (set(), set())
        acknowledged, unheard = acknowledged + len(made), unheard + silent
    print(f"{kills} kills, {acknowledged} jobs acknowledged, {unheard} requests without an answer")
    assert acknowledged >= kills and unheard > 0


def test_control_a_lost_or_doubled_job_is_seen(forks, tmp_path, draw):
    served = Served(tmp_path, forks=forks)
    job = served.create(steps=1, seconds=0).id
    served.kill()
    assert lost_and_doubled({"a": job, "b": "ftjob-lost"}, served) == ({"ftjob-lost"}, {job})
    end_all(served)


# S7: only the service is killed


class Witness(threading.Thread):
    """Looks for programs and trainers of a root all the time; the most at once of a job."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.most, self.stopping = root, Counter(), threading.Event()

    def run(self):
        while not self.stopping.wait(0.05):
            for job, number in programs(self.root).items():
                self.most[job] = max(self.most[job], number)


def programs(root):
    """How many programs work for each job, by what stands on their command lines."""
    found, mark = Counter(), f"{root}/jobs/".encode()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if (
            b"tests.launch.toy" in words
            and mark in words[-2]
            and files.start_ticks(int(entry.name))
        ):
            found[words[-2].decode().split("/jobs/")[1].split("/")[0]] += 1
    return found


def known(served, job_id):
    """The job, once its one trainer is the one that the service looks after."""
    job = served.openai.fine_tuning.jobs.retrieve(job_id)
    lease = Lease.read(served.root / "jobs" / job_id)
    alive = served.trainers()
    mine = lease is not None and alive == [lease.pid] and lease.attempt == job.attempt
    return job if mine and job.status == "running" else None


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.trial)])
def test_a_service_that_is_killed_alone_leaves_no_trainer_or_takes_it_up(
    forks, tmp_path, kills, draw
):
    served, adopted, again, slowest = Served(tmp_path, forks=forks), 0, 0, 0.0
    witness = Witness(served.root)
    witness.start()
    try:
        for turn in range(kills):
            job_id = served.create(steps=2000, seconds=0.1).id
            if turn == 0:
                until(lambda job=job_id: Lease.read(served.root / "jobs" / job))
            time.sleep(draw.random() * 2)  # before, while and after its trainer is started
            served.kill()
            left = served.trainers()
            served.start()
            begun = time.monotonic()
            job = until(lambda job=job_id: known(served, job))
            slowest = max(slowest, time.monotonic() - begun)
            adopted += bool(left) and job.attempt == 1
            again += job.attempt > 1
            served.openai.fine_tuning.jobs.cancel(job_id)
            until(lambda: not served.trainers(), 90)
    finally:
        witness.stopping.set()
        witness.join()
        served.kill()
        end_all(served)
    print(
        f"{kills} kills: {adopted} trainers taken up, {again} started anew, {slowest:.1f} s at most"
    )
    assert set(witness.most.values()) == {1} and adopted > 0


def test_control_two_programs_of_a_job_are_seen(tmp_path):
    from tests.launch.test_trainer import prepare, train

    folder = tmp_path / "jobs/ftjob-1"
    folder.mkdir(parents=True)
    prepare(folder, fault="deaf")  # long before it would see that another one works there
    trainers = [train(folder)]
    until(lambda: programs(tmp_path)["ftjob-1"] == 1)
    (folder / ".lease.lock").unlink()  # without the lock a second one works in it
    trainers.append(train(folder))
    until(lambda: programs(tmp_path)["ftjob-1"] == 2)
    for one in trainers:
        one.kill()
        one.wait()


# S3: service or trainer is killed, whichever


def wrong(served, made):
    """Jobs that did not end right, and why."""
    results = Counter(one["job_id"] for one in rows_of(served, t.files))
    notes = rows_of(served, t.events)
    attempts = rows_of(served, t.attempts)
    found = {}
    for row in rows_of(served, t.jobs):
        said = [one["message"] for one in notes if one["job_id"] == row["id"]]
        steps = [one.split(":")[0] for one in said if one.startswith("step ")]
        ended = sum(one.endswith("has finished") for one in said)
        mine = [one for one in attempts if one["job_id"] == row["id"]]
        if row["state"] == "succeeded":
            whole = steps == [f"step {i}" for i in range(1, made[row["id"]] + 1)]
            right = whole and results[row["id"]] == 2 and ended == 1
        else:  # it may fail only after so many attempts in a row without a word
            lost = row["error"] and row["error"]["code"] == "trainer_lost"
            right = row["state"] == "failed" and lost and len(mine) >= LIMIT and not ended
        if not right or any(one["ended_at"] is None for one in mine):
            found[row["id"]] = row["state"], steps, results[row["id"]], ended, len(mine)
    return found, Counter(row["state"] for row in rows_of(served, t.jobs))


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.trial)])
def test_service_and_trainers_killed_at_random_every_job_ends_right(forks, tmp_path, kills, draw):
    served, made, killed = Served(tmp_path, "--slots", "2", forks=forks), {}, Counter()
    witness = Witness(served.root)
    witness.start()
    try:
        for _ in range(kills):
            waiting = [one for one in rows_of(served, t.jobs) if one["state"] not in ENDED]
            while len(waiting) < 3:
                steps = draw.randint(1, 8)
                job = served.create(steps=steps, seconds=0.1)
                made[job.id] = steps
                waiting.append(job)
            time.sleep(draw.random() * 2.5)
            trainers = served.trainers()
            if trainers and draw.random() < 0.5:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(trainers), signal.SIGKILL)
                killed["trainer"] += 1
            else:
                served.kill()
                time.sleep(draw.random() * 0.5)
                served.start()
                killed["service"] += 1
        until(lambda: {one["state"] for one in rows_of(served, t.jobs)} <= ENDED, 180)
        found, states = wrong(served, made)
    finally:
        witness.stopping.set()
        witness.join()
        end_all(served)
        served.kill()
    print(
        f"killed {dict(killed)}; jobs {dict(states)}; at most {max(witness.most.values())} of one"
    )
    assert found == {} and set(made) == {one["id"] for one in rows_of(served, t.jobs)}
    assert max(witness.most.values()) == 1 and states["succeeded"] > 0


def test_control_a_job_that_is_stuck_or_published_twice_is_seen(forks, tmp_path):
    served = Served(tmp_path, forks=forks)
    made = {served.create(steps=2, seconds=0).id: 2 for _ in range(3)}
    for one in made:
        assert served.ends(one).status == "succeeded"
    served.kill()
    assert wrong(served, made)[0] == {}
    first, second, third = made
    database = Database(default_db(served.root))
    with database.write() as c:
        c.execute(t.jobs.update().where(t.jobs.c.id == first).values(state="running"))
        row = dict(
            c.execute(sa.select(t.files).where(t.files.c.job_id == second)).mappings().first()
        )
        c.execute(t.files.insert().values(**{**row, "id": "file-again", "seq": None}))
        gone = t.events.c.job_id == third, t.events.c.message.startswith("step 2")
        c.execute(t.events.delete().where(*gone))
    database.close()
    assert set(wrong(served, made)[0]) == {first, second, third}
