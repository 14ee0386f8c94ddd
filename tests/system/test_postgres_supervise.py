"""Supervisor and queue on a real PostgreSQL: their tests again."""

import pytest

from tests.launch.test_supervise import *  # noqa: F403

pytestmark = pytest.mark.system
del db  # noqa: F821  # the one beside this file, in PostgreSQL
