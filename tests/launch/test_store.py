"""Jobs in a real database: compare-and-set, slots, keys, cursors and owners under many threads."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from core.errors import UserError
from launch.service import tables as t
from launch.service.database import Database
from launch.service.noted import Note
from launch.service.states import Event, Refused, State
from launch.service.store import Jobs, KeyReused, new_id, standing
from launch.service.watch import News
from tests.launch.house import migrated


def job(owner="ada", **values):
    return {
        "id": new_id("ftjob"),
        "owner": owner,
        "created_at": 1.0,
        "method": "pixel_reward",
        "model": "newest",
        "metadata": {},
        "seed": 0,
        "asked": {},
        "shown": {},
        "settings": {},
        "uses": [],
        **values,
    }


@pytest.fixture
def database(tmp_path):
    (tmp_path / "jobs.sqlite").write_bytes(migrated())
    database = Database.open(f"sqlite:///{tmp_path}/jobs.sqlite")
    database.belongs("root")
    yield database
    database.close()


@pytest.fixture
def jobs(database):
    return Jobs(database)


def at_once(number, call):
    """The same call from many threads, begun together; results or exceptions."""
    barrier = threading.Barrier(number)

    def one(i):
        barrier.wait()
        try:
            return call(i)
        except Exception as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def running(jobs, slots=1):
    made, _ = jobs.create_job(job())
    jobs.change(made["id"], Event.VALIDATED)
    jobs.begin(made["id"], 1, slots, "local")
    return made["id"]


def test_migrations_make_the_tables_as_the_code_knows_them(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, t.metadata) == []
        extended = sa.MetaData()
        for table in t.metadata.tables.values():
            table.to_metadata(extended)
        sa.Table("more", extended, sa.Column("id", sa.Integer, primary_key=True))
        assert compare_metadata(context, extended) != []  # control: it sees what is missing


def test_a_database_is_of_one_root(database):
    database.belongs("root")
    with pytest.raises(UserError, match="another root"):
        database.belongs("elsewhere")


def test_an_address_that_is_none_is_one_sentence():
    with pytest.raises(UserError, match="check --db"):
        Database.open("nonsense")
    with pytest.raises(UserError, match="check --db"):
        Database.open("sqlite:////no/such/folder/jobs.sqlite")


def test_of_many_who_change_a_job_at_once_one_wins(jobs):
    made, _ = jobs.create_job(job())
    jobs.change(made["id"], Event.VALIDATED)
    slots = at_once(8, lambda i: jobs.begin(made["id"], 1, 8, "local"))
    assert [one for one in slots if not isinstance(one, Refused)] == [0]
    assert len(jobs.live()) == 1


def test_control_without_comparing_a_change_is_lost(jobs, monkeypatch):
    """Two who read the same standing: the later one must notice."""
    from launch.service import store

    job_id = running(jobs)
    row = jobs.job(job_id)
    jobs.change(job_id, Event.PAUSE)
    with jobs.write() as c:
        before = standing(row)  # of before the pause
        assert not store._exchange(c, job_id, before, before._replace(state=State.SUCCEEDED))
    assert jobs.job(job_id)["pausing"]
    monkeypatch.setattr(store, "STANDING", ("state", "attempt"))
    with jobs.write() as c:
        assert store._exchange(c, job_id, before, before._replace(state=State.SUCCEEDED))


def test_cancel_and_finish_at_once_end_in_one_of_the_two(jobs):
    for _ in range(10):
        job_id = running(jobs, slots=100)
        heard = at_once(
            2,
            lambda i, job_id=job_id: (
                jobs.change(job_id, Event.CANCEL)
                if i
                else jobs.change(job_id, Event.FINISHED, 1, ended={"code": 0})
            ),
        )
        state = jobs.job(job_id)["state"]
        assert state in (State.CANCELLED, State.SUCCEEDED)
        assert isinstance(heard[1], Refused) == (state == State.SUCCEEDED)
        assert not any(job["id"] == job_id for _, job in jobs.live())  # the slot is free


def test_slots_are_never_given_twice(jobs):
    made = [jobs.create_job(job())[0]["id"] for _ in range(6)]
    for one in made:
        jobs.change(one, Event.VALIDATED)
    slots = at_once(6, lambda i: jobs.begin(made[i], 1, 3, "local"))
    assert Counter(slots) == {0: 1, 1: 1, 2: 1, None: 3}
    ended = made[slots.index(1)]
    jobs.change(ended, Event.BROKE, 1, ended={"code": 2}, error={"message": "no"})
    waits = made[slots.index(None)]
    assert jobs.begin(waits, 1, 3, "local") == 1


def test_a_cancelled_job_keeps_its_slot_until_its_trainer_has_ended(jobs):
    first = running(jobs)
    jobs.change(first, Event.CANCEL)
    made, _ = jobs.create_job(job())
    jobs.change(made["id"], Event.VALIDATED)
    assert jobs.begin(made["id"], 1, 1, "local") is None
    assert jobs.change(first, Event.VANISHED, 1, ended={})["state"] == State.CANCELLED
    assert jobs.begin(made["id"], 1, 1, "local") == 0


def test_one_key_makes_one_job(jobs):
    found = at_once(16, lambda i: jobs.create_job(job(), "key", "digest"))
    assert Counter(new for _, new in found) == {True: 1, False: 15}
    assert len({row["id"] for row, _ in found}) == 1 and len(jobs.jobs("ada", None, 100).rows) == 1
    with pytest.raises(KeyReused):
        jobs.create_job(job(), "key", "another")
    assert jobs.create_job(job("bob"), "key", "digest")[1]  # of another owner


def test_news_are_kept_once(jobs):
    job_id = running(jobs)
    news = News(3, 0, 120, [2], [{"message": "step 3", "type": "metrics", "data": {"step": 2}}])
    assert jobs.record(job_id, 1, news)
    assert not jobs.record(job_id, 1, news)  # the cursor has moved
    assert not jobs.record(job_id, 2, News(4, 120, 130, [2, 4]))  # no such attempt
    assert len([e for e in jobs.events_since(job_id, 0, 100) if e["type"] == "metrics"]) == 1
    assert jobs.record(job_id, 1, News(5, 120, 150, [4]))
    assert [row["step"] for row in jobs.checkpoints(job_id, None, 10).rows] == [4]
    jobs.change(job_id, Event.CANCEL)
    assert not jobs.record(job_id, 1, News(6, 150, 160, [6]))  # it has ended


def test_steps_have_64_bits(jobs):
    made, _ = jobs.create_job(job(total=2**62))
    jobs.change(made["id"], Event.VALIDATED)
    jobs.begin(made["id"], 1, 1, "local")
    assert jobs.record(made["id"], 1, News(2**61, 0, 0, [2**60]))
    row = jobs.job(made["id"])
    assert (row["total"], row["step"]) == (2**62, 2**61)
    assert jobs.checkpoints(made["id"], None, 10).rows[0]["step"] == 2**60


def test_lists_go_on_after_a_name_and_show_an_owner_his_own(jobs):
    made = [jobs.create_job(job())[0]["id"] for _ in range(5)]
    other = jobs.create_job(job("bob"))[0]["id"]
    page = jobs.jobs("ada", None, 2)
    assert ([row["id"] for row in page.rows], page.more) == ([made[4], made[3]], True)
    page = jobs.jobs("ada", made[3], 3)
    assert ([row["id"] for row in page.rows], page.more) == ([made[2], made[1], made[0]], False)
    assert jobs.jobs("ada", "ftjob-none", 3).rows == []
    assert jobs.job(other, "ada") is None and jobs.job(other, "bob")["id"] == other


def test_events_come_in_their_order(jobs):
    made, _ = jobs.create_job(job())
    jobs.note(made["id"], [Note(str(i)) for i in range(5)])
    rows = jobs.events_since(made["id"], 0, 100)
    assert [row["message"] for row in rows][1:] == ["0", "1", "2", "3", "4"]
    page = jobs.events(made["id"], f"ftevent-{rows[3]['seq']}", 2)
    assert [row["message"] for row in page.rows] == ["1", "0"] and page.more
    assert jobs.events(made["id"], "ftevent-x", 2).rows == []
