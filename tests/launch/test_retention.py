"""What is removed once it is old, and what is not; what an archive unpacks to is its owner's."""

import time
import zipfile

import pytest
import sqlalchemy as sa

from core.errors import UserError
from core.storage import remove_tree
from launch.methods import METHODS, Method
from launch.service import retention
from launch.service import tables as t
from launch.service.checker import Checker
from launch.service.checks import check_file
from launch.service.dispatch import Dispatcher, Work
from launch.service.requests import Asked
from launch.service.retention import DAY, KEYS, QUEUE, Retention
from launch.service.service import Limits
from launch.service.states import Event, State
from tests.launch.house import bearer, house
from tests.launch.served import until
from tests.launch.test_store import job as row_of
from tests.launch.toy import METHOD

NOW = time.time()


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "toy", Method(**METHOD))
    with house(tmp_path / "root", limits=Limits(1 << 20, 1 << 20)) as (service, client):
        pruned = []
        keeps = Retention(service.database, service.root, pruned.append, 7.0)
        yield service, client, keeps, pruned


def ended(service, days, **values):
    """A job that succeeded so many days ago, with a result and a checkpoint."""
    job_id = service.jobs.create_job(row_of(method="toy", **values))[0]["id"]
    folder = service.supervisor.folder(job_id)
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    result = {"id": f"file-of-{job_id}", "owner": "ada", "job_id": job_id, "filename": "s.json",
              "purpose": "fine-tune-results", "bytes": 2, "sha256": "", "created_at": 1.0,
              "place": f"jobs/{job_id}/summary.json"}  # fmt: skip
    with service.jobs.write() as c:
        past = {"state": State.SUCCEEDED, "finished_at": NOW - days * DAY, "attempt": 1}
        c.execute(t.jobs.update().where(t.jobs.c.id == job_id).values(**past))
        c.execute(t.files.insert().values(**result))
        c.execute(t.checkpoints.insert().values(job_id=job_id, step=1, created_at=1.0, metrics={}))
    return job_id


def folders(service):
    return {path.name for path in (service.root / "jobs").iterdir()}


def test_folders_of_jobs_that_ended_long_ago_are_removed(world):
    service, client, keeps, _ = world
    old, young = ended(service, 8), ended(service, 6)
    keeps.sweep(NOW)
    assert folders(service) == {young}
    assert service.jobs.job(old)["state"] == State.SUCCEEDED  # the job is still told of
    assert service.jobs.events_since(old, 0, 9)[-1]["message"].endswith("kept for 7 days")
    assert service.files.of_jobs([old, young]) == {old: [], young: [f"file-of-{young}"]}
    assert service.jobs.checkpoints(old, None, 9).rows == []
    assert len(service.jobs.checkpoints(young, None, 9).rows) == 1
    ada = bearer(service)
    for path in ("", "/log", "/events", "/checkpoints", "/figures", "/pictures"):
        for one in (old, young):
            assert client.get(f"/v1/fine_tuning/jobs/{one}{path}", headers=ada).is_success
    asked = Asked("toy", {"other": old})
    with pytest.raises(UserError, match="none any more"):
        service.requests.resolve(asked, "ada", service.root / "x")
    service.requests.resolve(Asked("toy", {"other": young}), "ada", service.root / "x")  # control


def test_a_folder_that_is_still_needed_stays(world):
    service, _, keeps, _ = world
    used, held, _ = (ended(service, 99) for _ in range(3))
    settings = {"run": str(service.supervisor.folder(used))}
    later = service.jobs.create_job(row_of(method="toy", settings=settings))[0]["id"]
    with service.jobs.write() as c:  # a cancelled job whose trainer is not yet gone
        c.execute(t.attempts.insert().values(job_id=held, number=1, launcher="local", slot=0,
                                             begun_at=1.0))  # fmt: skip
    keeps.sweep(NOW)
    assert folders(service) == {used, held}
    service.jobs.change(later, Event.CANCEL)
    with service.jobs.write() as c:
        c.execute(t.attempts.update().values(ended_at=1.0))
    keeps.sweep(NOW)  # control
    assert folders(service) == set()


def naming(service, job_id):
    settings = {"run": str(service.supervisor.folder(job_id))}
    return service.jobs.create_job(row_of(method="toy", settings=settings))[0]["id"]


def test_a_folder_that_a_job_names_meanwhile_stays(world, monkeypatch):
    """Whoever asks while another folder is removed, which may take minutes."""
    service, _, keeps, _ = world
    ids = {ended(service, 99) for _ in range(2)}

    def slow(folder):
        remove_tree(folder)
        monkeypatch.setattr(retention, "remove_tree", remove_tree)
        naming(service, *(ids - {folder.name}))

    monkeypatch.setattr(retention, "remove_tree", slow)
    keeps.sweep(NOW)
    (kept,) = folders(service)
    assert service.files.of_jobs([kept]) == {kept: [f"file-of-{kept}"]}


def test_a_job_that_named_a_folder_too_late_is_not_made(world, monkeypatch):
    """Its request was resolved before the folder was given up; or the removal was broken off."""
    service, client, keeps, _ = world
    old = ended(service, 99)
    asked = {"method": {"type": "toy", "toy": {"other": old}}}
    ada, resolve = bearer(service), service.requests.resolve

    def slow(*words):
        found = resolve(*words)
        keeps.sweep(NOW)
        return found

    monkeypatch.setattr(retention, "remove_tree", lambda folder: None)  # killed before that
    monkeypatch.setattr(service.requests, "resolve", slow)
    answer = client.post("/v1/fine_tuning/jobs", json=asked, headers=ada)
    assert answer.status_code == 400 and "are removed" in answer.json()["error"]["message"]
    monkeypatch.undo()
    keeps.sweep(NOW)
    assert folders(service) == set()
    young = ended(service, 1)
    naming(service, young)  # control


def test_by_default_run_folders_stay_for_ever(world):
    service, _, _, _ = world
    old = ended(service, 9999)
    service.retention.prune_queue = lambda before: None
    service.retention.sweep(NOW)
    assert folders(service) == {old}


def test_old_keys_are_forgotten_and_the_queue_is_asked_to(world):
    service, _, keeps, pruned = world
    for key, age in (("old", KEYS + 60), ("young", KEYS - 60)):
        service.jobs.create_job(row_of(), key, "same")
        with service.jobs.write() as c:
            chosen = t.idempotency.update().where(t.idempotency.c.key == key)
            c.execute(chosen.values(created_at=NOW - age))
    keeps.sweep(NOW)
    assert pruned == [NOW - QUEUE]
    assert service.jobs.keyed("ada", "old", "same") is None
    assert service.jobs.keyed("ada", "young", "same") is not None


def test_the_queue_forgets_what_was_done(tmp_path):
    url, done = f"sqlite:///{tmp_path}/jobs.sqlite", []
    queue = Dispatcher(url, done.append)
    queue.start()
    try:
        work = Work("check", "one", 0)
        queue.put(work)
        until(lambda: done and not queue.waiting())
        queue.prune(time.time() - 60)
        assert held(url) == 1  # control: it is too young
        queue.prune(time.time() + 60)
        assert held(url) == 0
    finally:
        queue.stop()


@pytest.mark.parametrize("damage", ["garbage", "a page of it", "cut off"])
def test_a_damaged_queue_is_made_anew(tmp_path, damage, caplog):
    url, done = f"sqlite:///{tmp_path}/jobs.sqlite", []
    path = tmp_path / "jobs.sqlite.queue"

    def served():
        queue = Dispatcher(url, done.append)
        queue.start()
        try:
            work = Work("check", "one", len(done))
            queue.put(work)
            until(lambda: work in done and not queue.waiting())
        finally:
            queue.stop()

    served()
    served()  # control: a sound one stays
    assert held(url) == 2 and "put aside" not in caplog.text
    content = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"garbage" * 999)
    else:
        half = len(content) // 8192 * 4096
        rest = b"" if damage == "cut off" else b"x" * 4096 + content[half + 4096 :]
        path.write_bytes(content[:half] + rest)
    served()
    assert held(url) == 1 and "put aside" in caplog.text
    assert path.with_name(f"{path.name}.damaged").is_file()


def held(url):
    engine = sa.create_engine(f"{url}.queue")
    with engine.connect() as c:
        number = c.exec_driver_sql("SELECT count(*) FROM workflow_status").scalar()
    engine.dispose()
    return number


def test_what_an_archive_unpacks_to_counts_as_its_owners(world, tmp_path):
    """A megabyte is all that an owner may have."""
    service, _, _, _ = world
    service.supervisor.checker = Checker()
    try:
        made = [upload(service, tmp_path, 400_000), upload(service, tmp_path, 400_000)]
        check_file(service.files, service.supervisor.checker.ask, made[0]["id"], "ada")
        stored = sum(one["bytes"] for one in made)
        assert held_by(service, "ada") == stored + 400_000
        check_file(
            service.files, service.supervisor.checker.ask, made[0]["id"], "ada"
        )  # again: counted once
        check_file(service.files, service.supervisor.checker.ask, made[1]["id"], "ada")
        assert held_by(service, "ada") == stored + 800_000
        third = upload(service, tmp_path, 400_000)
        with pytest.raises(UserError, match="more than there is room for"):
            check_file(service.files, service.supervisor.checker.ask, third["id"], "ada")
        assert service.files.delete(made[0]["id"], "ada")
        check_file(service.files, service.supervisor.checker.ask, third["id"], "ada")  # control
        assert held_by(service, "bob") == 0
    finally:
        service.supervisor.checker.close()


def held_by(service, owner):
    return service.files.quota - service.files.room(owner)


def upload(service, tmp_path, size):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("images/a.txt", b"x" * size)
    part = service.files.incoming("ada")
    part.write(path.read_bytes())
    return service.files.keep(part, "ada", "a.zip", "fine-tune")
