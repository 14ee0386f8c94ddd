"""A model in a folder: it sees the picture, needs no network, and its nonsense is set aside."""

from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from data_balancing import local_tagger
from data_balancing.local_tagger import LocalModel
from data_balancing.tagging import Tagger
from data_balancing.taxonomy import load_taxonomy
from tests.data_balancing.seer import save_seer


def picture(level: int) -> np.ndarray:
    return np.full((24, 24, 3), level, np.uint8)


def test_it_tells_white_from_black(tmp_path: Path):
    model = LocalModel(save_seer(tmp_path / "seer"), "cpu")
    tagger = Tagger(model, load_taxonomy(), tmp_path / "cache")
    white, black = tagger.tag(picture(255)), tagger.tag(picture(0))
    assert (white.categories, white.reason) == (("hand",), "")
    assert (black.categories, black.reason) == ((), "")


def test_nonsense_is_set_aside(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(local_tagger, "MAX_NEW_TOKENS", 8)
    model = LocalModel(save_seer(tmp_path / "seer", steps=0), "cpu")
    found = Tagger(model, load_taxonomy(), tmp_path / "cache").tag(picture(255))
    assert found.categories == () and "3 tries" in found.reason


def test_other_weights_are_another_model(tmp_path: Path):
    first, second = save_seer(tmp_path / "a" / "m", 0), save_seer(tmp_path / "b" / "m", 1)
    assert (first / "config.json").read_bytes() == (second / "config.json").read_bytes()
    names = {LocalModel(folder, "cpu").name for folder in (first, second)}
    assert len(names) == 2 and all(name.startswith("m@") for name in names)


def test_folders_that_are_none(tmp_path: Path):
    with pytest.raises(UserError, match=r"no config\.json"):
        LocalModel(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="image-text-to-text"):
        LocalModel(tmp_path)
