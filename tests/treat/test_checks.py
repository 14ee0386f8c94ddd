"""Damage deep within what the settings name is found before a weight is read or a folder taken."""

import shutil

import pytest

from core.errors import UserError
from tests.treat.setting import build, config
from treat import checks, setup, train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def nothing_heavy(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the base was loaded before the check")

    monkeypatch.setattr(setup, "load_base", refuse)


def damaged_detector(world, place):
    folder = shutil.copytree(world / "detector", place / "damaged")
    content = bytearray((folder / "detector.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "detector.safetensors").write_bytes(content)
    return folder


def cut_picture(world, place):
    folder = shutil.copytree(world / "real", place / "real")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:-40])
    return folder


def bad_parquet(world, place):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sound = (world / "real/0.png").read_bytes()
    rows = {"image": [sound, sound, sound[:50]], "text": ["a hand", "a face", "a tree"]}
    parquet.write_table(pyarrow.table(rows), place / "real.parquet")
    return place / "real.parquet"


REFRESH = {"refresh_every": 1, "annotator": ("true",)}
DAMAGE = {
    "detector": (lambda w, p: {"detector": damaged_detector(w, p)}, "safetensors is damaged"),
    "second detector": (
        lambda w, p: {"second_detector": damaged_detector(w, p)},
        "safetensors is damaged",
    ),
    "real image": (lambda w, p: {"offline": cut_picture(w, p)}, "7.png"),
    "row of Parquet": (lambda w, p: {"offline": bad_parquet(w, p)}, "row 2"),
    "annotator": (
        lambda w, p: REFRESH | {"annotator": ("/nonexistent/cmd",)},
        "no command '/nonexistent/cmd' to run: check --annotator",
    ),
    "data of the refreshes": (lambda w, p: REFRESH | {"refresh_data": (p / "nowhere",)}, "nowhere"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_before_anything_heavy(name, world, tmp_path, nothing_heavy):
    harm, message = DAMAGE[name]
    with pytest.raises(UserError, match=message):
        train.main(config(world, tmp_path / "run", **harm(world, tmp_path)))
    assert not (tmp_path / "run").exists()
    with pytest.raises(AssertionError, match="the base was loaded"):  # control: undamaged
        train.main(config(world, tmp_path / "run", **REFRESH))


def test_a_run_that_goes_on_decodes_nothing_again(world, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert train.main(config(world, run, steps=1)) == 0

    def refuse(images):
        raise AssertionError("every picture was decoded")

    monkeypatch.setattr(checks, "check_pictures", refuse)
    assert train.main(config(world, run, steps=2)) == 0
    with pytest.raises(AssertionError, match="every picture"):
        train.main(config(world, tmp_path / "another", steps=1))


def test_a_detector_that_teaches_does_not_also_look(world, tmp_path):
    copy = shutil.copytree(world / "detector", tmp_path / "copy")
    further = {"detector": world / "second", "further_detectors": (copy,)}
    for changes in ({"detector": copy}, {"second_detector": copy}, further):
        asked = {"second_detector": world / "detector", **changes}
        with pytest.raises(UserError, match="is one that is learnt from"):
            train.main(config(world, tmp_path / "run", **asked))
    assert not (tmp_path / "run").exists()
    control = {"pixel_weight": 0.0, "lock_weight": 0.0, "second_detector": copy}
    checks.check_detectors(config(world, tmp_path / "run", **control))  # nothing is learnt from it
