"""Several detectors as one: the mean of their maps, and of their gradients."""

import pytest
import torch

from core.config import from_mapping
from core.errors import UserError
from detector.ensemble import Ensemble, ensemble
from detector.storage import load_detector
from tests.tiny import SIZE
from tests.treat.setting import build, config, losses
from treat import phases, train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


def test_mean_of_maps_and_gradients(world):
    one, two = (load_detector(world / name) for name in ("detector", "second"))
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert ensemble([one]) is one
    both = images.clone().requires_grad_()
    Ensemble([one, two])(both).sum().backward()
    each = []
    for detector in (one, two):
        own = images.clone().requires_grad_()
        detector(own).sum().backward()
        each.append(own.grad)
    assert torch.allclose(both.grad, (each[0] + each[1]) / 2, atol=1e-6)
    assert not torch.allclose(each[0], each[1], atol=1e-3)


def test_one_that_has_no_gradient_leaves_none():
    class Blind:
        differentiable = False

        def __call__(self, images):
            return images[:, :1]

    assert not Ensemble([Blind()]).differentiable


def test_a_treatment_learns_from_both(world, tmp_path):
    own = {"steps": 2, "second_detector": None}
    alone = config(world, tmp_path / "alone", **own)
    both = config(world, tmp_path / "both", further_detectors=(world / "second",), **own)
    assert train.main(alone) == train.main(both) == 0
    first, second = (losses(tmp_path / name)[1]["pixel"] for name in ("alone", "both"))
    assert first != second
    held = {name: phases.count(c, 1)[0].resident for name, c in (("one", alone), ("two", both))}
    assert held["two"]["detector"] == 2 * held["one"]["detector"]


@pytest.mark.parametrize("change", [{"detector": None}, {"refresh_every": 1, "annotator": ("x",)}])
def test_what_cannot_go_ensemble(world, tmp_path, change):
    given = config(world, tmp_path).model_dump() | {"further_detectors": (world / "second",)}
    with pytest.raises(UserError, match="further_detectors"):
        from_mapping(train.Config, given | change)
