"""Wishes are met once, whoever asks, and however often before a look."""

import pytest

from core.run import Run
from core.wishes import WISHES, ask, take
from tests.core.test_run import Settings


def test_a_wish_is_told_once(tmp_path):
    assert take(tmp_path) == set()
    assert ask(tmp_path, "sample") and not ask(tmp_path, "sample")
    assert ask(tmp_path, "save")
    assert take(tmp_path) == set(WISHES)
    assert take(tmp_path) == set() and not list(tmp_path.iterdir())
    assert ask(tmp_path, "sample")  # a new one
    with pytest.raises(FileNotFoundError):
        ask(tmp_path / "none", "save")


def test_a_run_takes_them_up_and_other_ranks_do_not(tmp_path):
    ask(tmp_path, "save")  # before it has begun
    with Run.start(Settings(), tmp_path, "program") as run:
        other = Run.start(Settings(), tmp_path, "program", main_process=False)
        assert other.wishes() == set()
        assert run.wishes() == {"save"} and run.wishes() == set()
        (tmp_path / "sample.now").touch()  # as a person would
        assert run.wishes() == {"sample"}
