"""The painter: layers cover every pixel once, colours stay, poses move what they should."""

from dataclasses import replace

import pytest
import torch

from core.seeds import generator
from miniature.law import CATEGORIES, SIZE, draw
from miniature.paint import coverages, layer_names, render, visible


@pytest.mark.parametrize("category", CATEGORIES)
def test_layers_cover_every_pixel_once(category: str):
    scenes = draw(category, 8, generator(1))
    weights = visible(coverages(scenes))
    assert weights.shape == (8, len(layer_names(category)), SIZE, SIZE)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(8, SIZE, SIZE))
    images = render(scenes)
    assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_layer_is_seen(category: str):
    """At least a dozen pixels in every image: no layer is hidden, none is too small to judge."""
    weights = visible(coverages(draw(category, 16, generator(2))))
    assert weights.sum(dim=(2, 3)).min() >= 12


@pytest.mark.parametrize("category", ["hand", "face", "bicycle", "sign"])
def test_a_pixel_of_pose_moves_the_objects_by_a_pixel(category: str):
    scene = draw(category, 4, generator(3))
    scene = replace(scene, pose=scene.pose * torch.tensor([0.0, 0.0, 1.0, 1.0]))
    moved = replace(scene, pose=scene.pose + torch.tensor([1.0, 0.0, 0.0, 0.0]))
    before, after = coverages(scene)[:, 2:], coverages(moved)[:, 2:]
    torch.testing.assert_close(after[..., 1:], before[..., :-1], atol=1e-3, rtol=0)
    assert (after - before).abs().max() > 0.5  # the control: unmoved it is another image


def test_the_iris_stays_in_the_white():
    """So a brown iris never lies on dark skin, which is too close to it."""
    cover = dict(
        zip(layer_names("face"), coverages(draw("face", 60, generator(4))).unbind(1), strict=True)
    )
    assert (cover["iris"] <= cover["eye"] + 0.15).all() and cover["iris"].max() > 0.99


def test_the_sun_moves_alone():
    scene = draw("scenery", 1, generator(4))
    moved = replace(scene, pose=scene.pose + torch.tensor([0.0, 0.0, 0.0, 1.0]))
    change = (coverages(scene) - coverages(moved)).abs().amax(dim=(0, 2, 3))
    changed = dict(zip(layer_names("scenery"), (change > 0).tolist(), strict=True))
    assert changed == {"sky": False, "ground": False, "sun": True, "trunk": False, "leaf": False}


def test_paint_is_differentiable_in_the_pose():
    scene = draw("hand", 2, generator(5))
    pose = scene.pose.clone().requires_grad_()
    render(replace(scene, pose=pose)).square().sum().backward()
    assert pose.grad is not None and (pose.grad[:, :3].abs() > 0).all()
