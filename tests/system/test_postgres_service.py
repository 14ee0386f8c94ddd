"""The whole service on a real PostgreSQL: submit, watch, pause, kill, adopt; its tests again."""

import pytest
import sqlalchemy as sa

from tests.launch.test_service import *  # noqa: F403

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def words(server):
    """The tables are made by the service itself."""
    return lambda: ["--db", server.fresh(migrated=False)]


def test_the_address_is_really_used(served):
    engine = sa.create_engine(served.words[-1])
    made = served.create(steps=1)
    with engine.connect() as c:
        assert made.id in c.exec_driver_sql("SELECT id FROM jobs").scalars().all()
        assert c.exec_driver_sql("SELECT count(*) FROM dbos.workflow_status").scalar() > 0
    engine.dispose()
    assert not list(served.root.glob("jobs.sqlite*"))
