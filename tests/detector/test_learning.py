"""The training step: it learns, skips what is not finite, and its average is put back."""

import math

import pytest
import torch

from core.errors import UserError
from detector.augmentation import NO_AUGMENTATION, Augmentation
from detector.data import to_tensors
from detector.learning import (
    LOSSES,
    MOST_SKIPPED,
    Learner,
    batch_loss,
    harden,
    learn_step,
    learning_rate,
)
from detector.segformer import SegformerConfig, SegformerDetector
from tests.detector.toy import toy_samples

SAMPLES = toy_samples(12)


def new(ema=0.0, optimizer="adamw"):
    detector = SegformerDetector(SegformerConfig(), seed=1).train()
    return Learner(detector, ema=ema, optimizer=optimizer)


def steps(learner, n, **changes):
    settings = {"seed": 0, "batch": 4, "rate": 3e-3, **changes}
    return [learn_step(learner, SAMPLES, NO_AUGMENTATION, step=k, **settings) for k in range(n)]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_falls(loss):
    number = 16 if loss == "dice" else 8  # which lies between 0 and 1, and starts slowly
    losses = [figures["loss"] for figures in steps(new(), number, loss=loss)]
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])


def test_the_average_comes_back_to_where_the_weights_are():
    tensors, state = Learner(torch.nn.Linear(2, 2), ema=0.5).pack()
    learner = Learner(torch.nn.Linear(2, 2, device="meta"), ema=0.5)
    learner.unpack(tensors, state)
    assert {tensor.device.type for tensor in learner.average.values()} == {"meta"}


def test_the_losses_by_hand():
    logits, target = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    assert LOSSES["mse"](logits, target).item() == pytest.approx(0.25)
    assert LOSSES["bce"](logits, target).item() == pytest.approx(math.log(2))


def test_the_rate_rises_then_falls_to_zero():
    rates = [learning_rate(k, 100, 1.0, 10) for k in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[10] == 1 and rates[-1] == pytest.approx(1 / 90)
    assert learning_rate(55, 100, 1.0, 10, "cosine") == pytest.approx(0.5)


def test_a_step_that_is_not_finite_changes_nothing_and_the_fifth_stops():
    learner = new()
    before = {name: t.clone() for name, t in learner.model.named_parameters()}
    bad = next(learner.model.parameters()).sum() * float("nan")
    for step in range(MOST_SKIPPED - 1):
        learner.update(bad, 1e-3, 1.0, step)
        bad = next(learner.model.parameters()).sum() * float("nan")
    assert all(torch.equal(before[n], p) for n, p in learner.model.named_parameters())
    with pytest.raises(UserError, match=r"step 4.*--learning-rate"):
        learner.update(bad, 1e-3, 1.0, MOST_SKIPPED - 1)


def test_the_average_follows_and_the_own_weights_come_back():
    learner = new(ema=0.9)
    steps(learner, 3)
    own = {name: t.clone() for name, t in learner.model.state_dict().items()}
    with learner.averaged() as detector:
        assert not detector.training
        inside = {name: t.clone() for name, t in detector.state_dict().items()}
    assert learner.model.training
    assert all(torch.equal(own[n], t) for n, t in learner.model.state_dict().items())
    assert any(not torch.equal(own[n], t) for n, t in inside.items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_pack_and_unpack_are_exact(optimizer):
    first = new(ema=0.9, optimizer=optimizer)
    steps(first, 2)
    second = new(ema=0.9, optimizer=optimizer)
    second.unpack(*first.pack())
    figures = [
        learn_step(one, SAMPLES, NO_AUGMENTATION, step=2, seed=0, batch=4, rate=1e-3)
        for one in (first, second)
    ]
    assert figures[0] == figures[1]
    ours, theirs = first.pack()[0], second.pack()[0]
    assert all(torch.equal(ours[s][n], theirs[s][n]) for s in ours for n in ours[s])


def test_muon_takes_what_mixes_channels_and_leaves_nothing_out():
    learner = new(optimizer="muon")
    by_name = {
        name: [p for group in optimizer.param_groups for p in group["params"]]
        for name, optimizer in learner.optimizers.items()
    }
    shapes = [p.shape for p in by_name["muon"]]
    assert shapes and all(min(shape[:2]) > 1 for shape in shapes)
    assert any(len(shape) == 4 for shape in shapes)  # kernels too
    ids = [id(p) for parameters in by_name.values() for p in parameters]
    assert sorted(ids) == sorted(id(p) for p in learner.model.parameters())


def test_hardening_raises_the_loss_and_leaves_the_detector_alone():
    learner = new()
    steps(learner, 4)
    detector = learner.model
    learner.model.zero_grad(set_to_none=True)
    before = {name: t.clone() for name, t in detector.state_dict().items()}
    images, target = to_tensors(SAMPLES[:4])
    settings = Augmentation(adversarial=0.5, adversarial_step=0.05)
    stepped = harden(detector, images, target, LOSSES["mse"], settings, seed=0, step=0)
    assert torch.equal(stepped[2:], images[2:]) and not torch.equal(stepped[:2], images[:2])
    detector.eval()
    losses = [batch_loss(detector, x[:2], target[:2], LOSSES["mse"]) for x in (images, stepped)]
    assert losses[1] > losses[0]
    assert all(torch.equal(before[n], t) for n, t in detector.state_dict().items())
    assert all(p.grad is None for p in detector.parameters())


def test_bf16_autocast_gives_float32_loss_and_finite_gradients():
    figures = steps(new(), 1, autocast=True)[0]
    assert math.isfinite(figures["loss"]) and math.isfinite(figures["gradient_norm"])
    exact = steps(new(), 1)[0]
    assert figures["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert figures["loss"] != exact["loss"]


def test_focal_and_dice_are_their_formulas():
    y = torch.tensor([[0.25, 1.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    logits = torch.tensor([[0.5, -1.0], [2.0, -3.0]]).view(2, 1, 1, 2)
    p = logits.sigmoid()
    entropy = -(y * p.log() + (1 - y) * (1 - p).log())
    expected = ((p - y).square() * entropy).mean()
    torch.testing.assert_close(LOSSES["focal"](logits, y), expected)
    each = [
        1 - (2 * (a * b).sum() + 1) / (a.square().sum() + b.square().sum() + 1)
        for a, b in zip(p, y, strict=True)
    ]
    torch.testing.assert_close(LOSSES["dice"](logits, y), torch.stack(each).mean())
    for name in ("focal", "dice"):  # a soft label that is met costs nothing
        assert LOSSES[name](torch.logit(torch.full_like(y, 0.3)), torch.full_like(y, 0.3)) < 1e-6


def test_a_segmentation_loss_sees_labels_cut_in_half():
    logits = torch.tensor([0.5, -1.0, 2.0]).view(1, 1, 1, 3)
    soft, hard = torch.tensor([0.5, 0.49, 0.9]), torch.tensor([1.0, 0.0, 1.0])
    for name, plain in (("binary", "bce"), ("binary_focal", "focal")):
        found = LOSSES[name](logits, soft.view_as(logits))
        assert found == LOSSES[plain](logits, hard.view_as(logits))
        assert found != LOSSES[plain](logits, soft.view_as(logits))  # control
    p, y = logits.sigmoid().flatten(), hard
    right = torch.where(y == 1, p, 1 - p)  # Lin et al. 2017, eq. 4, gamma 2
    focal = -((1 - right) ** 2 * right.log()).mean()
    torch.testing.assert_close(LOSSES["binary_focal"](logits, y.view_as(logits)), focal)


def test_the_power_bends_the_polynomial():
    rates = [learning_rate(5, 10, 1.0, 0, "poly", power) for power in (0.5, 1.0, 2.0)]
    assert rates == pytest.approx([0.5**0.5, 0.5, 0.25])
