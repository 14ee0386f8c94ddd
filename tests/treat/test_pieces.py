"""Out of memory anywhere in an update: smaller pieces, the same samples, order and sum."""

import gc
import itertools
import json
import random

import pytest
import torch

from core import checkpoint
from core.errors import UserError
from core.storage import read_lines
from tests.treat.setting import build, config, digest, losses
from tests.treat.test_resume import stop_at
from treat import train
from treat.adapter import read_adapter
from treat.pieces import Pieces

STEPS = 2
SITES = ("lock_to_base", "drawings", "accumulate_gradient", "offline_term")


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Memory that ends is collected: what the libraries hold need not be looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    """A run that fits."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert train.main(settings(world, out)) == 0
    return out


def settings(world, out, **changes):
    """Of a reward whose gradient is as large as that of the real images."""
    given = {"steps": STEPS, "batch": 4, "accumulation": 2, "guard": "off", "watch_every": 0}
    return config(world, out, **(given | {"learning_rate": 1e-3, "pixel_weight": 100} | changes))


def fits(monkeypatch, name, most, times=10**9, start=0):
    """Let `name` hold `most` images at once; `times` larger calls fail when done, from `start`."""
    whole, failed, calls = getattr(train, name), [], itertools.count()

    def limited(*given, **more):
        found = whole(*given, **more)
        rows = given[1] if name != "accumulate_gradient" else given[0].conditioning
        n = len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)
        if next(calls) >= start and n > most and len(failed) < times:
            failed.append(n)
            raise torch.OutOfMemoryError("Out of memory. Tried to allocate 20 GiB.")
        return found

    monkeypatch.setattr(train, name, limited)
    return failed


def computed(monkeypatch):
    """Of every micro-batch that went through: its pieces' samples and weights."""
    through, run = [], Pieces._run

    def noted(pieces, learn, here, share):
        parts = []

        def learning(piece, weight):
            parts.append((list(piece), weight))
            return learn(piece, weight)

        figures = run(pieces, learning, here, share)
        through.append(parts)
        return figures

    monkeypatch.setattr(Pieces, "_run", noted)
    return through


def compare(found, plain):
    expected, adapters = losses(plain), read_adapter(plain, "last").tensors
    figures = losses(found)
    for step in range(1, STEPS + 1):
        for name in ("pixel", "lock", "offline", "gradient_norm"):
            assert figures[step][name] == pytest.approx(expected[step][name], rel=1e-3), (
                step,
                name,
            )
    for name, tensor in read_adapter(found, "last").tensors.items():
        torch.testing.assert_close(tensor, adapters[name], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_the_same_sum_in_pieces(world, plain, tmp_path, monkeypatch, site):
    failed = fits(monkeypatch, site, most=1)
    assert train.main(settings(world, tmp_path)) == 0
    assert failed == [4, 2]  # each size fails once, and is not tried again
    compare(tmp_path, plain)
    said = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    told = [line["message"] for line in said if "at once" in line["message"]]
    assert ["on 2 images" in told[0], "on 1 images" in told[1], len(told)] == [True, True, 2]
    assert [losses(tmp_path)[step]["pieces"] for step in (1, STEPS)] == [4.0, 4.0]


@pytest.mark.trial
@pytest.mark.parametrize("trial", range(30))
def test_memory_that_ends_anywhere(world, plain, tmp_path, monkeypatch, trial):
    """At a random call of a random site, to a random size; the pieces halve, nothing else moves."""
    drawn = random.Random(trial)
    site, most, start = drawn.choice(SITES), drawn.randint(1, 3), drawn.randrange(2 * STEPS)
    through = computed(monkeypatch)
    failed = fits(monkeypatch, site, most, start=start)
    assert train.main(settings(world, tmp_path)) == 0
    assert failed == ([4, 2] if most == 1 else [4])
    samples = [sample for parts in through for piece, _ in parts for sample in piece]
    assert samples == [*range(8)] * STEPS and len(through) == 2 * STEPS
    assert sum(weight for parts in through for _, weight in parts) == pytest.approx(STEPS)
    assert {len(piece) for piece, _ in through[-1]} == {1 if most == 1 else 2}
    compare(tmp_path, plain)
    told = [line["message"] for line in read_lines(tmp_path / "events.jsonl")]
    assert sum("images are computed at once" in message for message in told) == len(failed)
    kept = checkpoint.load(tmp_path / "checkpoints", STEPS)
    assert kept.state["update"]["most"] == (1 if most == 1 else 2)


def test_what_failed_in_the_middle_leaves_no_gradient_behind(world, plain, tmp_path, monkeypatch):
    """The reward has learnt already when the offline term fails."""
    failed = fits(monkeypatch, "offline_term", most=2, times=1)
    assert train.main(settings(world, tmp_path)) == 0
    assert failed == [4]
    compare(tmp_path, plain)


def test_a_single_image_that_does_not_fit_is_said(world, tmp_path, monkeypatch):
    """Nothing came of the inputs, which may still be mended."""
    fits(monkeypatch, "drawings", most=0)
    with pytest.raises(UserError, match="Out of memory: a single image does not fit. `diff"):
        train.main(settings(world, tmp_path))
    assert checkpoint.steps(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("every", [1, 100])
def test_updates_before_memory_ended_are_kept(world, plain, tmp_path, monkeypatch, every):
    """A checkpoint was due or none was; the run that goes on computes all images at once."""
    given = settings(world, tmp_path, checkpoint_every=every)
    with monkeypatch.context() as patch:
        fits(patch, "offline_term", most=2, times=1)
        fits(patch, "drawings", most=0, start=1 + 2 * 2 * (STEPS - 1))  # a call that failed, pieces
        with pytest.raises(UserError, match=f"does not fit. Step {STEPS - 1} is kept"):
            train.main(given)
    assert losses(tmp_path)[STEPS - 1]["pieces"] == 2.0
    assert checkpoint.steps(tmp_path / "checkpoints") == [STEPS - 1]
    assert train.main(given) == 0
    assert losses(tmp_path)[STEPS]["pieces"] == 1.0
    compare(tmp_path, plain)


def test_they_are_kept_where_the_network_is_shared_out(world, tmp_path, monkeypatch):
    given = settings(world, tmp_path, checkpoint_every=100, batch=1, accumulation=2)
    monkeypatch.setattr(train, "sharded", lambda: True)
    fits(monkeypatch, "drawings", most=0, start=given.accumulation)
    with pytest.raises(UserError, match="does not fit. Step 1 is kept"):
        train.main(given)
    assert checkpoint.steps(tmp_path / "checkpoints") == [1]


def test_a_network_that_is_shared_out_is_not_halved(world, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "sharded", lambda: True)
    fits(monkeypatch, "drawings", most=2)
    with pytest.raises(UserError, match="4 images at once do not fit.*set --batch 1"):
        train.main(settings(world, tmp_path))


def test_pieces_that_are_not_equal(world, tmp_path, monkeypatch):
    """Three images in two and one: each counts a third."""
    assert train.main(settings(world, tmp_path / "plain", batch=3)) == 0
    failed = fits(monkeypatch, "offline_term", most=2)
    assert train.main(settings(world, tmp_path / "pieces", batch=3)) == 0
    assert failed == [3]
    compare(tmp_path / "pieces", tmp_path / "plain")


def test_a_run_that_goes_on_computes_as_many_at_once(world, tmp_path, monkeypatch):
    """The limit is met again in no update, and the bits are the same nevertheless."""
    fits(monkeypatch, "offline_term", most=2, times=1)
    assert train.main(settings(world, tmp_path / "whole")) == 0
    fits(monkeypatch, "offline_term", most=2, times=1)
    stopped = settings(world, tmp_path / "stopped")
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        train.main(stopped)
    assert train.main(stopped) == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert digest(tmp_path / "stopped", STEPS) == digest(tmp_path / "whole", STEPS)
    assert losses(tmp_path / "stopped")[STEPS]["pieces"] == 2.0
