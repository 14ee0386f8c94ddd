"""What becomes of a job when launchers, queues, folders and outcomes say this or that."""

import asyncio
import io
import itertools
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import sqlalchemy as sa
import uvicorn
from sqlalchemy.exc import OperationalError

from core.errors import DiskFull, UserError
from core.storage import append_line
from launch.folder import Job, Outcome, ask_to_stop, asked_to_stop, killed
from launch.launchers import Liveness
from launch.launchers.contract import Unreachable
from launch.methods import METHODS, Method
from launch.service import dispatch, looks, supervise
from launch.service import tables as t
from launch.service.attempt import programs
from launch.service.checker import Checker, Closed, Strange, Unanswered
from launch.service.dispatch import Dispatcher, Work
from launch.service.serving import Server
from launch.service.states import LIMIT, Event, State
from launch.service.watch import CHUNK, LONGEST, Watch
from tests.launch.house import NAMES, house
from tests.launch.served import until
from tests.launch.test_store import job as row_of
from tests.launch.toy import METHOD


class Fake:
    """A launcher whose trainers are as alive as a test says."""

    def __init__(self):
        self.liveness = Liveness.ALIVE
        self.submitted, self.cancelled, self.known = [], [], None
        self.fault = None

    def submit(self, folder, attempt):
        if self.fault is not None:
            raise self.fault
        self.submitted.append(attempt)
        return "handle"

    def poll(self, folder, attempt, handle):
        return self.liveness

    def cancel(self, folder, attempt, handle):
        self.cancelled.append(attempt)

    def recover(self, folder, attempt):
        return self.known


@pytest.fixture
def db():
    """Address of the database; None: SQLite in the root."""
    return None


@pytest.fixture
def world(tmp_path, monkeypatch, db):
    """The supervisor, its jobs and its launcher, with the toy as a method; the test turns it."""
    monkeypatch.setitem(METHODS, "toy", Method(**METHOD))
    monkeypatch.setattr(looks, "WAIT", 60.0)  # every look of a `tend` ends before it returns
    with house(tmp_path / "root", db=db) as (service, _):
        launcher = Fake()
        service.supervisor.launchers = {"local": launcher}
        put = []
        service.supervisor.put = put.append
        yield service.supervisor, service.jobs, launcher, put


def begun(world, **values):
    supervisor, jobs, _, _ = world
    job_id = jobs.create_job(row_of(method="toy", total=10, **values))[0]["id"]
    supervisor.check(job_id)
    supervisor.start(job_id, 1)
    return job_id


def outcome(supervisor, job_id, attempt, code=0, stopped=False, error=""):
    Outcome(attempt, code, stopped, error, 1.0).write(supervisor.folder(job_id))


def test_a_trainer_gets_its_job(world):
    supervisor, jobs, launcher, put = world
    supervisor.devices, supervisor.environment = ("7",), {"A": "b"}
    job_id = begun(world, settings={"out": "x", "steps": 3})
    spec = Job.read(supervisor.folder(job_id))
    assert (spec.job, spec.attempt, launcher.submitted) == (job_id, 1, [1])
    assert spec.environment == {"A": "b", "CUDA_VISIBLE_DEVICES": "7"}
    assert spec.programs[0].settings == {"out": "x", "steps": 3}
    assert put == [Work("start", job_id, 1)]
    assert jobs.attempt(job_id, 1)["handle"] == "handle"


def test_only_what_may_be_several_processes_gets_a_layout(world):
    supervisor, jobs, _, _ = world
    supervisor.layout = {"num_processes": 2}
    job = row_of(settings={"steps": 3})
    for method, layouts in (
        ("artifact_detector", [{"num_processes": 2}]),
        ("pixel_reward", [{"num_processes": 2}, {}]),  # the export after it is one
        ("export", [{}]),
        ("data_round", [{}]),
    ):
        found = programs(job, METHODS[method], Path("/x"), supervisor.layout)
        assert [one.layout for one in found] == layouts
    job_id = begun(world)
    assert Job.read(supervisor.folder(job_id)).programs[0].layout == {"num_processes": 2}


def test_looks_are_rare_where_nobody_listens_and_no_attempt_is_young(world, monkeypatch):
    supervisor, *_ = world
    assert not supervisor.tend()
    job_id = begun(world)
    assert supervisor.tend()
    monkeypatch.setattr(supervise, "YOUNG", 0.0)
    assert not supervisor.tend()

    async def tend_beside_a_stream():
        heard = supervisor.bell.listen(job_id)
        soon = await asyncio.to_thread(supervisor.tend)
        supervisor.bell.leave(job_id, heard)
        return soon

    assert asyncio.run(tend_beside_a_stream())
    assert not supervisor.tend()


def test_a_start_and_a_stop_end_the_rest_at_once(world, monkeypatch):
    supervisor, *_ = world
    looked = threading.Event()
    monkeypatch.setattr(supervisor, "look_after", lambda *rows: looked.set())
    for name in ("LOOK", "REST"):
        monkeypatch.setattr(supervise, name, 1000.0)
    supervisor.begin()
    begun(world)
    assert looked.wait(60)
    supervisor.stop()  # waits for the thread


def test_unknown_kills_nothing_and_starts_nothing(world):
    supervisor, jobs, launcher, _ = world
    job_id = begun(world)
    launcher.liveness = Liveness.UNKNOWN
    for _ in range(3):
        supervisor.tend()
    assert jobs.job(job_id)["state"] == State.RUNNING and launcher.cancelled == []
    jobs.change(job_id, Event.CANCEL)
    with jobs.write() as c:
        c.execute(t.attempts.update().values(stop_at=time.time() - supervise.GRACE - 1))
    supervisor.tend()
    assert launcher.cancelled == [] and len(jobs.live()) == 1
    launcher.liveness = Liveness.ALIVE  # control: then it is ended
    supervisor.tend()
    assert launcher.cancelled == [1]
    launcher.liveness = Liveness.DEAD
    supervisor.tend()
    assert jobs.live() == [] and jobs.job(job_id)["state"] == State.CANCELLED


def test_a_cancelled_trainer_is_asked_before_it_is_ended(world):
    supervisor, jobs, launcher, _ = world
    job_id = begun(world)
    supervisor.tend()
    assert asked_to_stop(supervisor.folder(job_id), 1) is None
    jobs.change(job_id, Event.PAUSE)
    supervisor.tend()
    assert asked_to_stop(supervisor.folder(job_id), 1) == "pause"
    jobs.change(job_id, Event.CANCEL)
    supervisor.tend()
    assert asked_to_stop(supervisor.folder(job_id), 1) == "cancel"
    assert launcher.cancelled == [] and jobs.attempt(job_id, 1)["stop_at"] is not None


def test_a_slot_without_a_submission_is_given_back_and_counts_for_nothing(world):
    """The service ended between the two; five times, which is more than `LIMIT`."""
    supervisor, jobs, launcher, put = world
    job_id = begun(world)
    for attempt in range(1, LIMIT + 3):
        with jobs.write() as c:
            c.execute(t.attempts.update().values(handle=None))
        supervisor.tend()
        row = jobs.job(job_id)
        assert (row["state"], row["attempt"], row["silent"]) == (State.QUEUED, attempt + 1, 0)
        assert put[-1] == Work("start", job_id, attempt + 1)
        supervisor.start(job_id, attempt + 1)


def test_a_submission_that_nobody_wrote_down_is_found(world):
    supervisor, jobs, launcher, _ = world
    job_id = begun(world)
    with jobs.write() as c:
        c.execute(t.attempts.update().values(handle=None))
    launcher.known = "found"
    supervisor.tend()
    assert jobs.job(job_id)["state"] == State.RUNNING
    assert jobs.attempt(job_id, 1)["handle"] == "found"


def test_an_outcome_of_a_former_attempt_says_nothing(world):
    supervisor, jobs, launcher, _ = world
    job_id = begun(world)
    launcher.liveness = Liveness.DEAD
    supervisor.tend()
    supervisor.start(job_id, 2)
    launcher.liveness = Liveness.ALIVE
    outcome(supervisor, job_id, 1, code=2, error="late")
    supervisor.tend()
    assert jobs.job(job_id)["state"] == State.RUNNING
    outcome(supervisor, job_id, 2, code=2, error="now")
    supervisor.tend()
    assert jobs.job(job_id)["error"]["message"] == "now"


def test_a_failure_names_inputs_as_their_owner_does(world):
    supervisor, jobs, _, _ = world
    place = str(supervisor.root / "files/file-1/content.txt")
    told = {"settings": {"prompts": place, "out": "x"}, "shown": {"prompts": "file-1"}}
    job_id = begun(world, **told)
    outcome(supervisor, job_id, 1, code=2, error=f"{place} has no lines.")
    supervisor.tend()
    assert jobs.job(job_id)["error"]["message"] == "file-1 has no lines."


def test_exit_code_zero_needs_its_proof(world):
    supervisor, jobs, launcher, _ = world
    for proof, state in ((False, State.FAILED), (True, State.SUCCEEDED)):
        job_id = begun(world)
        if proof:
            (supervisor.folder(job_id) / "summary.json").write_text("{}")
        outcome(supervisor, job_id, 1)
        supervisor.tend()
        row = jobs.job(job_id)
        assert row["state"] == state
        results = supervisor.files.of_jobs([job_id])[job_id]
        assert len(results) == proof
        assert proof or row["error"]["code"] == "no_result"


def test_a_launcher_that_cannot_is_tried_again_so_often(world, monkeypatch):
    supervisor, jobs, launcher, put = world
    monkeypatch.setattr(supervise, "SWEEP", 0.0)
    launcher.fault = UserError("no such partition.")
    job_id = begun(world)
    for attempt in range(2, LIMIT + 1):
        supervisor.sweep()
        assert put[-1] == Work("start", job_id, attempt)
        supervisor.start(job_id, attempt)
    row = jobs.job(job_id)
    assert row["state"] == State.FAILED and "no such partition" in row["error"]["message"]
    assert jobs.live() == []


def test_a_machine_that_cannot_is_tried_ever_more_rarely_and_fails_no_job(world, monkeypatch):
    supervisor, jobs, launcher, put = world
    now = [1000.0]
    monkeypatch.setattr(supervise.time, "monotonic", lambda: now[0])
    launcher.fault = OSError("no room on the disk")
    job_id = begun(world)
    moments = [now[0]]
    for attempt in range(2, LIMIT + 5):
        put.clear()
        while not put:  # nothing at once
            now[0] += 1
            supervisor.sweep()
        moments.append(now[0])
        supervisor.start(job_id, attempt)
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert pauses == [10, 20, 40, 80, 160, 320]
    row = jobs.job(job_id)
    assert (row["state"], row["silent"]) == (State.QUEUED, 0)
    told = [one["message"] for one in jobs.events_since(job_id, 0, 100)]
    assert "attempt 7 was never started: no trainer could be started (no room on the disk)" in told
    launcher.fault = None
    supervisor.start(job_id, LIMIT + 5)
    assert jobs.job(job_id)["state"] == State.RUNNING


def test_a_full_disk_fails_no_job(world):
    supervisor, jobs, launcher, _ = world
    launcher.fault = DiskFull("disk full: /x, need 3 bytes, free 0 bytes.")
    job_id = begun(world)
    row = jobs.job(job_id)
    assert (row["state"], row["silent"], row["attempt"]) == (State.QUEUED, 0, 2)


def test_a_job_whose_folder_is_gone_waits_for_it_and_does_not_begin_anew(world):
    supervisor, jobs, launcher, _ = world
    job_id = begun(world)
    folder = supervisor.folder(job_id)
    append_line(folder / "metrics.jsonl", '{"step": 1}')
    outcome(supervisor, job_id, 1, code=75, stopped=True)
    supervisor.tend()
    folder.rename(folder.with_name("away"))
    supervisor.start(job_id, 2)
    assert not folder.exists() and launcher.submitted == [1]
    told = [one["message"] for one in jobs.events_since(job_id, 0, 100)]
    assert any("its run folder is gone: put it back" in one for one in told)
    folder.with_name("away").rename(folder)
    supervisor.start(job_id, 3)
    assert launcher.submitted == [1, 3] and jobs.job(job_id)["state"] == State.RUNNING


def test_a_folder_that_is_away_makes_no_storm_of_attempts(world):
    supervisor, jobs, _, put = world
    (supervisor.root / "jobs").rename(supervisor.root / "away")
    job_id = begun(world)
    supervisor.sweep()
    supervisor.tend()
    assert jobs.job(job_id)["attempt"] == 2 and put == [Work("start", job_id, 1)]


def test_a_program_that_was_killed_is_tried_again_and_says_so(world):
    supervisor, jobs, _, _ = world
    job_id = begun(world)
    for attempt in range(1, LIMIT + 1):
        outcome(supervisor, job_id, attempt, code=(-9, 137, -9)[attempt - 1], error="by SIGKILL")
        supervisor.tend()
        if attempt < LIMIT:
            assert jobs.job(job_id)["state"] == State.QUEUED
            supervisor.start(job_id, attempt + 1)
    row = jobs.job(job_id)
    assert row["state"] == State.FAILED
    assert row["error"] == {"code": "trainer_lost", "message": "by SIGKILL", "param": None}


@pytest.mark.parametrize(("code", "number"), [(-9, 9), (137, 9), (143, 15), (2, 0), (255, 0)])
def test_codes_that_mean_a_signal(code, number):
    assert killed(code) == number


def test_one_that_is_stopped_again_and_again_fails_for_a_reason(world):
    supervisor, jobs, _, _ = world
    job_id = begun(world)
    for attempt in range(1, LIMIT + 1):
        outcome(supervisor, job_id, attempt, code=75, stopped=True)
        supervisor.tend()
        if attempt < LIMIT:
            supervisor.start(job_id, attempt + 1)
    row = jobs.job(job_id)
    assert row["state"] == State.FAILED and "before it had saved" in row["error"]["message"]


def test_news_that_cannot_be_noted_hold_no_slot(world, monkeypatch):
    supervisor, jobs, _, _ = world
    job_id = begun(world)
    append_line(supervisor.folder(job_id) / "metrics.jsonl", '{"step": 1}')
    jobs.change(job_id, Event.PAUSE)

    def breaks(*_):
        raise ValueError("nothing that a database keeps")

    monkeypatch.setattr(jobs, "record", breaks)
    supervisor.tend()
    assert asked_to_stop(supervisor.folder(job_id), 1) == "pause"
    outcome(supervisor, job_id, 1, code=75, stopped=True)
    supervisor.tend()
    assert jobs.job(job_id)["state"] == State.PAUSED and jobs.live() == []


def test_the_last_news_are_told_before_the_end(world):
    supervisor, jobs, _, _ = world
    job_id = begun(world)
    folder = supervisor.folder(job_id)
    (folder / "summary.json").write_text("{}")
    for step in range(1, 4):
        append_line(
            folder / "metrics.jsonl", json.dumps({"step": step, "loss": step, "time": step})
        )
    outcome(supervisor, job_id, 1)
    supervisor.tend()
    row = jobs.job(job_id)
    assert row["step"] == 3 and row["finish_at"] == 10  # one second a step, ten steps
    messages = [one["message"] for one in jobs.events_since(job_id, 0, 100)]
    assert messages[-4:-1] == ["step 1: loss 1", "step 2: loss 2", "step 3: loss 3"]


def test_what_could_not_be_kept_is_read_again(world, monkeypatch):
    supervisor, jobs, _, _ = world
    job_id = begun(world)
    append_line(supervisor.folder(job_id) / "metrics.jsonl", '{"step": 1}')

    def breaks(*_):
        raise OSError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "record", breaks)
        supervisor.tend()
    supervisor.tend()
    assert jobs.job(job_id)["step"] == 1


def test_one_job_that_cannot_be_looked_after_leaves_the_others(world, monkeypatch):
    supervisor, jobs, launcher, _ = world
    supervisor.slots = 2
    first, second = begun(world), begun(world)
    outcome(supervisor, second, 1, code=2, error="x")
    (supervisor.folder(first) / "events.jsonl").mkdir()  # cannot be read
    supervisor.tend()
    assert jobs.job(second)["state"] == State.FAILED and jobs.job(first)["state"] == State.RUNNING


def test_jobs_that_no_queue_knows_are_put(world):
    supervisor, jobs, _, put = world
    queued = jobs.create_job(row_of(method="toy"))[0]["id"]
    checked = jobs.create_job(row_of(method="toy"))[0]["id"]
    jobs.change(queued, Event.VALIDATED)
    supervisor.sweep()
    assert set(put) == {Work("start", queued, 1), Work("check", checked, 0)}
    put.clear()
    supervisor.waiting = lambda: {Work("start", queued, 1)}
    supervisor.sweep()
    assert put == [Work("check", checked, 0)]


def test_an_upload_without_a_row_leaves_nothing(world, monkeypatch):
    files = world[0].files
    part = files.incoming("ada")
    part.write(b"lines")

    def locked():
        raise OperationalError("insert", {}, Exception("database is locked"))

    with monkeypatch.context() as patch, pytest.raises(OperationalError):
        patch.setattr(files, "write", locked)
        files.keep(part, "ada", "p.txt", "fine-tune")
    part.close()
    assert [*(files.root / "files").iterdir(), *(files.root / "incoming").iterdir()] == []


def stored(supervisor, name, content):
    """A file of ada's."""
    part = supervisor.files.incoming("ada")
    part.write(content)
    return supervisor.files.keep(part, "ada", name, "fine-tune")


def test_a_file_that_is_gone_or_damaged_fails_the_job(world, tmp_path):
    supervisor, jobs, _, _ = world
    file = stored(supervisor, "p.txt", b"a hand\n")
    gone = jobs.create_job(row_of(method="toy", uses=["file-gone"]))[0]["id"]
    kept = jobs.create_job(row_of(method="toy", uses=[file["id"]]))[0]["id"]
    damaged = jobs.create_job(row_of(method="toy", uses=[file["id"]]))[0]["id"]
    supervisor.check(gone)
    supervisor.check(kept)
    supervisor.files.path(file).write_bytes(b"a")
    supervisor.check(damaged)
    assert jobs.job(gone)["error"]["code"] == "invalid_file"
    assert "upload it again" in jobs.job(damaged)["error"]["message"]
    assert jobs.job(kept)["state"] == State.QUEUED


def test_a_store_that_is_away_is_not_the_files_fault(world):
    supervisor, jobs, _, _ = world
    file = stored(supervisor, "p.txt", b"a hand\n")
    job_id = jobs.create_job(row_of(method="toy", uses=[file["id"]]))[0]["id"]
    store = supervisor.root / "files"
    store.rename(store.with_name("away"))
    with pytest.raises(FileNotFoundError):
        supervisor.check(job_id)
    assert jobs.job(job_id)["state"] == State.VALIDATING
    store.with_name("away").rename(store)
    supervisor.check(job_id)
    assert jobs.job(job_id)["state"] == State.QUEUED


def parquet(**columns):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


FILES = {
    "empty.txt": (b"", "holds no prompt"),
    "comments.txt": (b"# a\n\n", "holds no prompt"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0", "does not parse"),
    "bare.jsonl": (b"a hand\n", "does not parse"),
    "other.csv": (b"text\na hand\n", "no column 'prompt'"),
    "five.parquet": (b"PAR1\n", "no Parquet file"),
    "other.parquet": (parquet(text=["a hand"]), "no column 'prompt' or 'image'"),
    "empty.parquet": (parquet(prompt=pyarrow.array([], "string")), "has no rows"),
    "good.txt": (b"a hand\n", None),
    "good.jsonl": (b'{"prompt": "a hand"}\n', None),
    "good.csv": (b"prompt\na hand\n", None),
    "good.parquet": (parquet(prompt=["a hand"]), None),
    "pictures.parquet": (parquet(image=[b"x"]), None),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_before_it_is_said_to_be_in_order(world, name):
    supervisor, jobs, _, _ = world
    content, fault = FILES[name]
    file = stored(supervisor, name, content)
    job_id = jobs.create_job(row_of(method="toy", uses=[file["id"]]))[0]["id"]
    supervisor.check(job_id)
    job = jobs.job(job_id)
    assert job["state"] == (State.QUEUED if fault is None else State.FAILED)
    if fault is not None:
        said = job["error"]["message"]
        assert said.startswith(name) and fault in said and str(supervisor.root) not in said


def test_files_that_nobody_can_check_fail_the_job_in_the_end(world):
    supervisor, jobs, _, _ = world
    part = supervisor.files.incoming("ada")
    part.write(b"PK")
    file = supervisor.files.keep(part, "ada", "a.zip", "fine-tune")
    job_id = jobs.create_job(row_of(method="toy", uses=[file["id"]]))[0]["id"]

    class Broken:
        def ask(self, what, **values):
            raise Unanswered("it has died")

    supervisor.checker = Broken()
    for _ in range(LIMIT - 1):
        supervisor.do(Work("check", job_id, 0))
        assert jobs.job(job_id)["state"] == State.VALIDATING
    supervisor.do(Work("check", job_id, 0))
    assert jobs.job(job_id)["error"]["code"] == "unchecked"


# The run folder


def test_news_are_whole_lines_only(tmp_path):
    watch = Watch(tmp_path)
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"message": "a", "level": "warn"}\n{"mess')
    news = watch.look(None, 0)
    assert [one["message"] for one in news.notes] == ["a"]
    with path.open("ab") as stream:
        stream.write(b'age": "b"}\nnonsense\n[]\n{"message": 3, "level": "shout", "data": 1}\n')
    more = watch.look(None, news.events_read)
    assert [(one["message"], one["level"]) for one in more.notes] == [("b", "info"), ("3", "info")]
    assert watch.look(None, more.events_read).notes == []


def test_news_hold_only_what_a_database_keeps(world):
    supervisor, jobs, _, _ = world
    job_id = begun(world)
    folder = supervisor.folder(job_id)
    event = {"message": "\ud800 a\0b", "data": {"\udcff": ["\0", float("nan"), 2.5]}}
    append_line(folder / "events.jsonl", json.dumps(event))
    append_line(folder / "events.jsonl", "[" * 60_000)
    late = 10**400
    append_line(folder / "metrics.jsonl", f'{{"step": 1, "loss": Infinity, "time": {late}}}')
    supervisor.tend()
    told = jobs.events_since(job_id, 0, 100)
    assert {"step": 1, "loss": None} in [one["data"] for one in told]
    assert told[-1]["message"] == "? a?b" and told[-1]["data"] == {"?": ["?", None, 2.5]}


def test_a_run_that_is_taken_up_again_tells_its_steps_once(tmp_path):
    watch, path = Watch(tmp_path), tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {i}}}\n' for i in range(6)))
    assert len(watch.look(None, 0).notes) == 6
    other = tmp_path / "rewound"
    other.write_text("".join(f'{{"step": {i}}}\n' for i in range(4)))
    os.replace(other, path)  # as `Run.rewind` does
    assert watch.look(5, 0).notes == []
    with path.open("a") as stream:
        stream.write('{"step": 4}\n{"step": 5}\n{"step": 6}\n')
    assert [one["data"]["step"] for one in watch.look(5, 0).notes] == [6]
    assert [one["data"]["step"] for one in Watch(tmp_path).look(5, 0).notes] == [6]


def test_a_file_without_lines_does_not_hold_it_up(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * CHUNK + b'\n{"message": "after"}\n')
    watch, read, found = Watch(tmp_path), 0, []
    for _ in range(4):
        news = watch.look(None, read)
        read, found = news.events_read, found + news.notes
    assert [one["message"] for one in found] == ["after"]
    path.write_bytes(json.dumps({"message": "y" * LONGEST}).encode() + b"\n")
    assert Watch(tmp_path).look(None, 0).notes == []


def test_only_whole_checkpoints_count(tmp_path):
    for name in ("step-00000002", "step-00000010", ".staging-step-00000011", "quarantine-step-1",
                 "step-x", "step-1"):  # fmt: skip
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert Watch(tmp_path).look(None, 0).saved == [2, 10]


# The processes beside it


def test_a_checker_that_dies_or_hangs_is_replaced(tmp_path):
    checker = Checker(idle=0.3, patience=20)
    missing = {"archive": str(tmp_path / "no.zip"), "into": str(tmp_path / "x"), "room": 1}
    with pytest.raises((UserError, Unanswered)):
        checker.ask("unpack", **missing)
    time.sleep(1.0)  # it has left by itself
    assert checker._child is None or checker._child.poll() is not None
    with pytest.raises(UserError, match="cannot be set over HTTP"):
        checker.ask("check", config="tests.launch.toy", settings={"command": ["x"]}, inputs=[],
                    words=[])  # fmt: skip
    checker._patience = 0.0
    with pytest.raises(Unanswered):
        checker.ask("schema", config="tests.launch.toy", allowed=[])
    assert checker._child is None
    checker.close()


def test_a_question_that_breaks_ends_no_child(tmp_path):
    checker = Checker()
    try:
        with pytest.raises(Strange, match="AttributeError"):
            checker.ask("free", config="json")  # has no settings
        child = checker._child
        missing = {"archive": str(tmp_path / "no.zip"), "into": str(tmp_path / "x"), "room": 1}
        with pytest.raises(Unanswered):  # a fault of the disk is not who asked's
            checker.ask("unpack", **missing)
        assert "command" in checker.ask("free", config="tests.launch.toy")
        assert checker._child is child
    finally:
        checker.close()


def test_a_checker_is_closed_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.zip")  # the child waits for what nobody writes
    checker, room = Checker(patience=30), {"into": str(tmp_path / "x"), "room": 1}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(checker.ask, "unpack", archive=str(tmp_path / "a.zip"), **room)
        until(lambda: (tmp_path / ".x.staging").exists())
        begun = time.monotonic()
        checker.close()
        assert time.monotonic() - begun < 10
        with pytest.raises(Closed):
            asked.result(10)
    with pytest.raises(Closed):
        checker.ask("free", config="tests.launch.toy")


def test_a_signal_ends_open_questions(tmp_path):
    with house(tmp_path / "root", open_to=NAMES) as (service, client):
        service.checker = service.requests.checker = Checker()
        server = Server(uvicorn.Config(client.app), service)
        server.handle_exit(signal.SIGTERM, None)
        assert service.stopping and server.should_exit
        schema = client.get("/v1/methods/export/schema")
        assert schema.status_code == 503 and "being stopped" in schema.json()["error"]["message"]


def test_work_is_done_in_order_once_and_again_after_a_stop(tmp_path, db):
    url, done, failing = db or f"sqlite:///{tmp_path}/jobs.sqlite", [], [True]

    def do(work):
        if work.job == "second" and failing[0]:
            time.sleep(0.2)
            return  # as when the service stops while it waits for a slot
        done.append(work)

    first = Dispatcher(url, do)
    first.start()
    works = [Work("start", name, 1) for name in ("first", "second", "third")]
    for work in works:
        first.put(work)
    first.put(works[0])
    wait_until(lambda: works[2] in done)
    wait_until(lambda: not first.waiting())
    assert done == [works[0], works[2]]
    first.stop()
    first.put(works[1])  # stopped: it is left to the next
    failing[0] = False
    second = Dispatcher(url, do)
    second.start()
    assert second.waiting() == set()
    second.put(works[1])  # as the sweep does
    wait_until(lambda: works[1] in done)
    second.stop()
    content = (
        queued(url)
        if db
        else b"".join(one.read_bytes() for one in tmp_path.glob("jobs.sqlite.queue*"))
    )
    assert b"py_pickle" not in content and b"second" in content


def test_the_engine_sleeps_where_nothing_is_to_do_and_wakes_for_work(tmp_path, db, monkeypatch):
    monkeypatch.setattr(dispatch, "QUIET", 0.0)
    done, may_end = [], threading.Event()

    def do(work):
        may_end.wait(60)
        done.append(work)

    dispatcher = Dispatcher(db or f"sqlite:///{tmp_path}/jobs.sqlite", do)
    dispatcher.start()
    try:
        for name in ("first", "second"):
            work = Work("check", name, 0)
            may_end.clear()
            dispatcher.put(work)
            dispatcher.rest()  # it waits, or is being done
            assert engine_runs() and dispatcher.waiting() == {work}
            may_end.set()
            wait_until(lambda: not dispatcher.waiting())
            dispatcher.rest()
            assert not engine_runs() and done[-1] == work
            assert dispatcher.waiting() == set()
        dispatcher.prune(time.time() + 1)
        dispatcher.put(Work("check", "first", 0))  # pruned: nothing is known of the first time
        wait_until(lambda: len(done) == 3)
    finally:
        dispatcher.stop()
    assert not engine_runs()


def test_an_engine_that_could_not_be_woken_is_woken_by_the_next(tmp_path, db, monkeypatch):
    monkeypatch.setattr(dispatch, "QUIET", 0.0)
    done, work = [], Work("check", "first", 0)
    dispatcher = Dispatcher(db or f"sqlite:///{tmp_path}/jobs.sqlite", done.append)
    dispatcher.start()
    try:
        dispatcher.rest()
        with monkeypatch.context() as away:
            away.setattr(dispatch.DBOS, "register_queue", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                dispatcher.put(work)
        assert not engine_runs()
        dispatcher.put(work)
        wait_until(lambda: done == [work])
    finally:
        dispatcher.stop()


def engine_runs():
    """By the thread that ends with the engine; those that did its work may end a moment later."""
    return any(one.name == "dbos-background-jobs" for one in threading.enumerate())


def queued(url):
    """All that a queue in PostgreSQL holds."""
    engine = sa.create_engine(url)
    with engine.connect() as c:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'dbos'"
        names = list(c.exec_driver_sql(query).scalars())
        found = [list(c.exec_driver_sql(f'SELECT * FROM dbos."{name}"')) for name in names]
    engine.dispose()
    return repr(found).encode()


def wait_until(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_a_stop_is_for_one_attempt(tmp_path):
    ask_to_stop(tmp_path, 2, "pause")
    assert asked_to_stop(tmp_path, 1) is None and asked_to_stop(tmp_path, 2) == "pause"


# Looks


def test_a_look_that_takes_long_holds_up_no_other(world, monkeypatch):
    """A cancel that waits for a trainer's end, or a scheduler that does not answer."""
    supervisor, jobs, launcher, _ = world
    monkeypatch.setattr(looks, "WAIT", 0.1)
    supervisor.slots = 2
    first, second = begun(world), begun(world)
    stuck, begun_looks = threading.Event(), []

    def poll(folder, attempt, handle):
        begun_looks.append(folder.name)
        if folder.name == first:
            stuck.wait(60)
        return Liveness.ALIVE

    monkeypatch.setattr(launcher, "poll", poll)
    supervisor.tend()
    outcome(supervisor, second, 1, code=2, error="x")
    wait_until(lambda: (supervisor.tend(), jobs.job(second)["state"] == State.FAILED)[1])
    assert begun_looks.count(first) == 1  # never two at once
    stuck.set()
    wait_until(lambda: (supervisor.tend(), begun_looks.count(first) > 1)[1])


def test_a_fault_that_stays_is_told_ever_more_rarely(world, monkeypatch, caplog):
    supervisor, jobs, launcher, _ = world
    now = [1000.0]
    monkeypatch.setattr(looks.time, "monotonic", lambda: now[0])
    job_id = begun(world)
    with jobs.write() as c:
        c.execute(t.attempts.update().values(handle=None))

    def away(folder, attempt):
        raise Unreachable("no controller")

    monkeypatch.setattr(launcher, "recover", away)
    told = []
    for _ in range(200):  # a look each second
        supervisor.tend()
        if caplog.records:
            told.append(now[0] - 1000)
            (line,) = caplog.messages
            assert line == f"attempt 1 of {job_id} cannot be looked at: no controller"
            assert caplog.records[0].exc_info is None
            caplog.clear()
        now[0] += 1
    assert told == [0, 60, 180]
    monkeypatch.setattr(launcher, "recover", lambda folder, attempt: "found")
    supervisor.tend()
    assert jobs.attempt(job_id, 1)["handle"] == "found"  # control: it was asked all the time


def test_a_submission_without_an_answer_is_asked_for_until_it_is_known(world, monkeypatch, caplog):
    supervisor, jobs, launcher, put = world

    def lost(folder, attempt):
        raise Unreachable("no answer")

    def away(folder, attempt):
        raise Unreachable("still none")

    monkeypatch.setattr(launcher, "submit", lost)
    monkeypatch.setattr(launcher, "recover", away)
    job_id = jobs.create_job(row_of(method="toy"))[0]["id"]
    supervisor.check(job_id)
    supervisor.do(Work("start", job_id, 1))
    assert [one.exc_info for one in caplog.records] == [None]
    supervisor.tend()
    assert jobs.job(job_id)["state"] == State.RUNNING and len(jobs.live()) == 1
    monkeypatch.setattr(launcher, "recover", lambda folder, attempt: None)
    supervisor.tend()  # it was not taken, which counts for nothing
    row = jobs.job(job_id)
    assert (row["state"], row["attempt"], row["silent"]) == (State.QUEUED, 2, 0)
