"""Checkpoints under fire: SIGKILL at each storage operation, damaged files, full disks."""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from core import checkpoint, storage
from core.errors import UserError
from tests.core.faults import failing_at, killed_at, operations, replaced, tree

TENSORS = {stem: {"w": torch.arange(2000.0), "b": torch.ones(3)} for stem in ("weights", "ema")}


def save(folder, step, mark=0):
    tensors = {
        stem: {name: value + 10 * step + mark for name, value in named.items()}
        for stem, named in TENSORS.items()
    }
    checkpoint.save(folder, step, tensors, {"step": step, "mark": mark})


def is_whole(found, mark=0):
    """The content is of the step and mark that the state claims."""
    expected = TENSORS["ema"]["w"] + 10 * found.step + found.state["mark"]
    same = all(torch.equal(found.tensors[stem]["w"], expected) for stem in TENSORS)
    return same and found.state["step"] == found.step


@pytest.fixture
def three(tmp_path):
    """A folder with checkpoints 1, 2, 3, of which saving 4 prunes what is too old."""
    folder = tmp_path / "three"
    for step in (1, 2, 3):
        save(folder, step)
    return folder


def copied(folder, n):
    target = folder.parent / f"copy-{n}"
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize(("step", "mark"), [(4, 0), (3, 1)], ids=["next", "same step again"])
def test_kill_before_and_after_every_storage_operation(three, step, mark):
    count = len(operations(lambda: save(copied(three, "count"), step, mark)))
    assert count > 15
    before_count = 0
    for n in range(count):
        for after in (False, True):
            folder = copied(three, f"{n}{after}")
            assert killed_at(lambda folder=folder: save(folder, step, mark), n, after)
            found = checkpoint.load_newest(folder)
            assert found is not None and is_whole(found)
            assert (found.step, found.state["mark"]) in {(3, 0), (step, mark)}
            before_count += (found.step, found.state["mark"]) == (3, 0)
            assert not list(folder.glob("quarantine-*"))
            save(folder, step, mark)  # the same command again
            assert tree(folder) == tree(three.parent / "copy-count")
    assert 0 < before_count < 2 * count  # both outcomes were seen


def test_control_a_plain_save_is_caught_by_the_same_kills(three):
    """Files written in place, read without a manifest: some stop must show a broken newest."""

    def plain_save(folder):
        target = folder / "step-00000004"
        storage.primitives.mkdir(target)
        for stem in TENSORS:
            storage.write_file(target / f"{stem}.safetensors", bytes(100))

    def plain_newest_is_whole(folder):
        newest = max(path for path in folder.glob("step-*"))
        return all((newest / f"{stem}.safetensors").exists() for stem in TENSORS)

    count = len(operations(lambda: plain_save(copied(three, "count"))))
    outcomes = set()
    for n in range(count):
        folder = copied(three, n)
        assert killed_at(lambda folder=folder: plain_save(folder), n, True)
        outcomes.add(plain_newest_is_whole(folder))
        found = checkpoint.load_newest(folder)  # ours sets the torn one aside
        assert found is not None and found.step == 3
    assert False in outcomes


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize(("step", "mark"), [(4, 0), (3, 1)], ids=["next", "same step again"])
def test_an_error_at_every_storage_operation(three, code, step, mark):
    count = len(operations(lambda: save(copied(three, "count"), step, mark)))
    for n in range(count):
        folder = copied(three, n)
        with failing_at(n, code), pytest.raises(UserError) as said:
            save(folder, step, mark)
        full = f"disk full: {folder / f'step-{step:08d}'}, need "
        assert (full in str(said.value) and "free" in str(said.value)) == (code != errno.EIO)
        found = checkpoint.load_newest(folder)
        assert found is not None and is_whole(found)
        save(folder, step, mark)
        assert tree(folder) == tree(three.parent / "copy-count")


def test_writes_that_take_only_a_few_bytes(tmp_path):
    def wrap(name, function):
        return (lambda fd, data: function(fd, data[:701])) if name == "write" else function

    with replaced(wrap):
        save(tmp_path, 1)
    found = checkpoint.load_newest(tmp_path)
    assert found is not None and is_whole(found)


def damage(draw: random.Random, folder: Path) -> str:
    """One random fault in one file of the newest checkpoint; returns what was done."""
    newest, older = folder / "step-00000003", folder / "step-00000002"
    victim = draw.choice(sorted(newest.iterdir()))
    content = bytearray(victim.read_bytes())
    kind = draw.choice(["flip", "truncate", "zero", "missing", "swap", "grow"])
    if kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "truncate":
        del content[draw.randrange(len(content)) :]
    elif kind == "zero":
        start = draw.randrange(0, len(content), 512)
        while not any(content[start : start + 512]):  # a page that is not zero already
            start = draw.randrange(0, len(content), 512)
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    elif kind == "swap":
        content = bytearray((older / victim.name).read_bytes())
    elif kind == "grow":
        content += draw.randbytes(1)
    if kind == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content)
    return f"{kind} {victim.name}"


def undetected(three: Path, trials: int, seed: int) -> list[str]:
    """The faults after which step 3 still loads."""
    accepted = []
    for trial in range(trials):
        folder = copied(three, trial)
        done = damage(random.Random(seed * 1_000_000 + trial), folder)
        found = checkpoint.load_newest(folder, report=lambda message: None)
        assert found is not None
        if found.step == 3:
            accepted.append(done)
        else:
            assert found.step == 2 and (folder / "quarantine-step-00000003").is_dir()
        shutil.rmtree(folder)
    return accepted


@pytest.mark.parametrize("trials", [200, pytest.param(2000, marks=pytest.mark.trial)])
def test_every_random_damage_is_detected(three, trials):
    seed = int.from_bytes(os.urandom(3))
    assert undetected(three, trials, seed) == [], f"seed {seed}"


def test_control_without_verification_damage_is_accepted(three, monkeypatch):
    monkeypatch.setattr(checkpoint, "_verified", lambda path, entry: checkpoint._bytes(path))
    accepted = undetected(three, 60, seed=0)
    assert any("flip" in done for done in accepted) and any("swap" in done for done in accepted)


def test_a_whole_checkpoint_under_another_name_is_not_taken(three):
    (three / "step-00000003").rename(three / "step-00000009")
    found = checkpoint.load_newest(three, report=lambda message: None)
    assert found is not None and found.step == 2


def test_damage_is_named_and_asked_for_steps_never_fall_back(three, capsys):
    (three / "step-00000003" / "ema.safetensors").unlink()
    with pytest.raises(UserError, match="step-00000003 is damaged .ema.safetensors"):
        checkpoint.load(three, 3)
    checkpoint.load_newest(three)
    assert "step-00000003" in capsys.readouterr().err


def test_nothing_but_damage_is_an_error_also_the_second_time(three):
    for path in three.glob("step-*/ema.safetensors"):
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match="every checkpoint .* is damaged"):
            checkpoint.load_newest(three, report=lambda message: None)
    assert len(list(three.glob("quarantine-*"))) == 2


def test_a_reader_leaves_a_save_in_progress_alone(three):
    (three / ".staging-step-00000004").mkdir()
    checkpoint.load_newest(three)
    assert (three / ".staging-step-00000004").is_dir()


def test_every_file_and_folder_is_synced_around_the_rename(three):
    """A killed process leaves the page cache whole, so power loss needs the order itself."""
    log: list[tuple[str, str]] = []
    paths: dict[int, str] = {}

    def wrap(name, function):
        def told(*args, **kwargs):
            result = function(*args, **kwargs)
            if name == "open":
                paths[result] = Path(args[0]).name
            subject = paths[args[0]] if name in ("fsync", "write") else args[name == "rename"]
            log.append((name, Path(subject).name))
            return result

        return told

    with replaced(wrap):
        save(three, 4)
    commit = log.index(("rename", "step-00000004"))
    written = {subject for name, subject in log[:commit] if name == "write"}
    assert written == {
        "weights.safetensors",
        "ema.safetensors",
        "state.json",
        "manifest.json",
    }
    synced = [subject for name, subject in log[:commit] if name == "fsync"]
    assert written < set(synced) and synced[-2:] == ["manifest.json", ".staging-step-00000004"]
    assert log[commit + 1 : commit + 3] == [("open", "three"), ("fsync", "three")]
    assert all(log.index(("fsync", name)) > _last(log, ("write", name)) for name in written)
    removals = [i for i, (name, _) in enumerate(log) if name in ("unlink", "rmdir")]
    assert min(removals) > commit + 2  # nothing is removed before the new one is safe


def _last(log, entry):
    return len(log) - 1 - log[::-1].index(entry)
