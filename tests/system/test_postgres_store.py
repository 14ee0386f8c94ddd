"""The tables in a real PostgreSQL: the tests of the store again."""

import pytest

from tests.launch.test_store import *  # noqa: F403

pytestmark = pytest.mark.system
del database  # noqa: F821  # the one beside this file, in PostgreSQL


def test_it_is_postgres(jobs, server):
    job_id = running(jobs)  # noqa: F405
    engine = server.engine(f"test{server.made}")
    with engine.connect() as c:
        assert c.exec_driver_sql("SELECT id FROM jobs").scalar() == job_id
        assert c.exec_driver_sql("SELECT version()").scalar().startswith("PostgreSQL")
    engine.dispose()
