"""What the memory of an update grows with: bytes of real tensors that live at once."""

import pytest

from core.counting import Tally
from tests.tiny import SIZE
from tests.treat.setting import build, config
from treat import train

LATENT = 4 * 16 * (SIZE // 4) ** 2
"""Bytes of one image's, in float32."""
FEW = 2048
"""Bytes of a sampler's own tables and of scalars."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


def peak(world, out, monkeypatch, **changes) -> int:
    """Of the micro-batches of one update, above what lives before them."""
    tally, marks = Tally(), []
    learn = train.learn

    def counted(*args):
        if not marks:
            marks.append(tally.live)
            tally.peak = tally.live
        figures = learn(*args)
        marks.append(tally.peak)
        return figures

    quiet = {"steps": 1, "watch_every": 0, "guard": "off"}
    with monkeypatch.context() as patch, tally:
        patch.setattr(train, "learn", counted)
        train.main(config(world, out, **(quiet | changes)))
    return marks[-1] - marks[0]


def up_to(few, many):
    return pytest.mark.parametrize("most", [few, pytest.param(many, marks=pytest.mark.slow)])


@up_to(12, 64)
def test_flat_in_the_steps_of_a_drawing(world, tmp_path, monkeypatch, most):
    few, many = (
        peak(world, tmp_path / str(steps), monkeypatch, sampling_steps=steps, last=2)
        for steps in (4, most)
    )
    assert few > 10 * LATENT
    assert many - few <= FEW


@up_to(5, 16)
def test_one_latent_for_each_step_that_learns(world, tmp_path, monkeypatch, most):
    def of(number, **changes):
        out = tmp_path / f"{number}-{len(changes)}"
        return peak(world, out, monkeypatch, sampling_steps=most, last=number, **changes)

    assert of(most) - of(1) <= (most - 1) * LATENT + FEW
    kept = of(most, recompute=False) - of(1, recompute=False)
    assert kept > 10 * (most - 1) * LATENT  # the control: whole graphs are seen


@up_to(5, 16)
def test_flat_in_accumulation(world, tmp_path, monkeypatch, most):
    def of(**changes):
        name = "-".join(map(str, changes.values()))
        return peak(world, tmp_path / name, monkeypatch, **changes)

    assert abs(of(accumulation=most) - of(accumulation=2)) <= FEW
    assert of(batch=4) > 1.5 * of(batch=1)  # the control
