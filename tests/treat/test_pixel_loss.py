"""Each selection against numbers worked out by hand."""

import pytest
import torch

from core.errors import UserError
from treat.pixel_loss import dilated, lock_loss, pixel_loss, straight_through_clamp

MAPS = torch.tensor([[0.05, 0.2, 0.6, 0.1], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
BY_HAND = {
    "threshold": (0.8 / (2 + 1e-5) + 0) / 2,
    "root": (0.8 / ((2 + 1e-5) * 4) ** 0.5 + 0) / 2,
    "area": (0.8 / 4) / 2,
    "all": (0.95 / 4) / 2,
    "max": 0.6 / 2,
}


@pytest.mark.parametrize("selection", BY_HAND)
def test_by_hand(selection):
    assert pixel_loss(MAPS, selection, 0.1).item() == pytest.approx(BY_HAND[selection], rel=1e-6)


@pytest.mark.parametrize("wrong", [("treshold", "log"), ("threshold", "lag")])
def test_an_unknown_word_is_no_silent_default(wrong):
    with pytest.raises(UserError, match="did you mean '(threshold|log)'"):
        pixel_loss(torch.rand(1, 1, 4, 4), wrong[0], penalty=wrong[1])


def test_the_mask_carries_no_gradient():
    maps = MAPS.clone().requires_grad_()
    pixel_loss(maps, "threshold", 0.1).backward()
    expected = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]).view(2, 1, 2, 2) / (2 + 1e-5) / 2
    torch.testing.assert_close(maps.grad, expected)


def test_the_logarithm_pulls_at_a_pixel_that_is_sure():
    logits = torch.tensor([-3.0, 1.0, 14.0]).view(1, 1, 1, 3)
    pulls = {}
    for penalty in ("probability", "log"):
        given = logits.clone().requires_grad_()
        loss = pixel_loss(given.sigmoid(), "threshold", 0.5, penalty)
        loss.backward()
        pulls[penalty] = given.grad.flatten() * (2 + 1e-5)  # two of the three are marked
    p = logits.sigmoid().flatten()
    marked = torch.tensor([0.0, 1.0, 1.0])
    torch.testing.assert_close(pulls["probability"], marked * p * (1 - p), rtol=0.05, atol=0)
    torch.testing.assert_close(pulls["log"], marked * p, rtol=0.05, atol=0)
    assert pixel_loss(torch.ones(1, 1, 2, 2), "threshold", 0.5, "log").isfinite()
    cost = -(1 - p[1:]).log().mean().item()
    assert loss.item() == pytest.approx(cost, rel=0.05)


def test_the_mean_is_blind_to_area_and_area_is_not():
    small, large = torch.zeros(2, 1, 1, 8, 8).unbind()
    small[..., :2, :2] = large[..., :4, :4] = 0.9
    losses = {name: [pixel_loss(m, name) for m in (small, large)] for name in BY_HAND}
    assert losses["threshold"][0].item() == pytest.approx(losses["threshold"][1].item(), rel=1e-4)
    assert losses["area"][1].item() == pytest.approx(4 * losses["area"][0].item(), rel=1e-5)


@pytest.mark.parametrize(("selection", "ratio"), [("threshold", 0.5), ("root", 1.0), ("area", 2.0)])
def test_how_hard_an_image_with_four_times_the_area_pulls(selection, ratio):
    maps = torch.zeros(2, 1, 8, 8)
    maps[0, :, :2, :2] = maps[1, :, :4, :4] = 0.9
    pixel_loss(maps.requires_grad_(), selection).backward()
    small, large = maps.grad.flatten(1).norm(dim=1)
    assert (large / small).item() == pytest.approx(ratio, rel=1e-4)


def test_clamp_is_straight_through():
    images = torch.tensor([-0.5, 0.3, 1.5]).view(1, 3, 1, 1).requires_grad_()
    clamped = straight_through_clamp(images)
    assert torch.equal(clamped.flatten(), torch.tensor([0.0, 0.3, 1.0]))
    clamped.sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))


def test_lock_counts_change_outside_the_mask_only():
    maps = torch.zeros(1, 1, 5, 5)
    maps[..., 2, 2] = 0.9
    inside = dilated(maps, 0.5, 1)
    assert inside.sum() == 9 and dilated(maps, 0.5, 0).sum() == 1
    base = torch.zeros(1, 3, 5, 5)
    changed = base.clone()
    changed[..., 1:4, 1:4] = 1.0
    assert lock_loss(changed, base, inside) == 0
    changed[..., 0, 0] = 0.5
    assert lock_loss(changed, base, inside).item() == pytest.approx(3 * 0.25 / 75)
    part = lock_loss(changed, base, inside, 0.1).item()
    assert part == pytest.approx((3 * 0.25 + 0.1 * 3 * 9) / 75)
