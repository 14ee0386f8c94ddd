"""A service in the test's own process, without a queue or a child: routes, guard and tables."""

import json
import re
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from starlette.testclient import TestClient

from launch.service import checker
from launch.service.app import ROUTES, make_app
from launch.service.database import Database
from launch.service.service import Limits, Plan, Service, default_db

HOST = "http://127.0.0.1:8765"
NAMES = frozenset({"127.0.0.1", "localhost", "::1"})


class Queue:
    """Remembers what it was given."""

    def __init__(self):
        self.work = []

    def put(self, work):
        self.work.append(work)


class Believes:
    """A checker that finds all settings good, and remembers them."""

    def __init__(self):
        self.asked = []

    def ask(self, what, **values):
        self.asked.append(values)
        return values.get("settings", {})

    def close(self):
        pass


class Answers:
    """The checker's child, without the child: JSON in, JSON out."""

    def ask(self, what, **values):
        line = json.dumps({"do": what, **values}).encode()
        found = json.dumps(checker.answer(checker.QUESTIONS, json.loads(line)))
        return checker.told(json.loads(found))

    def close(self):
        pass


@cache
def migrated() -> bytes:
    """A database with its tables and nothing in them; making one takes as long as a short test."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database.open(f"sqlite:///{folder}/jobs.sqlite")
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()
        return (Path(folder) / "jobs.sqlite").read_bytes()


@contextmanager
def house(root: Path, open_to=None, models=None, limits=None, routes=ROUTES, db=None):
    """The service, and a client that may be given headers."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "jobs.sqlite").write_bytes(migrated())
    limits = limits or Limits(upload=1 << 20, quota=4 << 20)
    plan = Plan(root, db or default_db(root), models=models or {}, limits=limits)
    service = Service(plan)
    service.dispatcher, service.checker = Queue(), Believes()
    service.requests.checker, service.supervisor.checker = service.checker, Answers()
    try:
        app = make_app(service, open_to, routes)
        yield service, TestClient(app, base_url=HOST, raise_server_exceptions=False)
    finally:
        service.database.close()
        service.lock.close()


def bearer(service: Service, owner="ada", scopes=("read", "write"), days=None):
    return {"authorization": f"Bearer {service.tokens.create(owner, scopes, days)[1]}"}


def filled(path: str, name="x") -> str:
    """A route's path with something in its places."""
    return re.sub(r"\{[^}]*\}", name, path)
