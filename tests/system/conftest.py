"""Foreign services, started when a test first asks for one."""

import pytest

from launch.service.database import Database
from tests.system.postgres import postgres


@pytest.fixture(scope="session")
def server():
    """A PostgreSQL."""
    with postgres() as server:
        yield server


@pytest.fixture
def database(server):
    database = Database.open(server.fresh())
    database.belongs("root")
    yield database
    database.close()


@pytest.fixture
def db(server):
    return server.fresh()
