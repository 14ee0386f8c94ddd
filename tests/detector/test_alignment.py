"""The gradient is taught the way to mend: what is measured, that it falls, and what it leaves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from core.errors import UserError
from core.seeds import generator
from detector import learning
from detector.alignment import misalignment
from detector.augmentation import NO_AUGMENTATION
from detector.data import nearest, reference_batch
from detector.learning import Alignment, Learner, learn_step
from detector.segformer import SegformerConfig, SegformerDetector
from tests.detector.toy import toy_samples

PAIRS = [sample for sample in toy_samples(36) if sample.reference is not None]


class Distance(nn.Module):
    """An ideal detector: how far each pixel is from the sound image, which it knows."""

    def __init__(self, sound, sign=1.0):
        super().__init__()
        self.sound, self.sign = sound, sign

    def forward(self, images):
        return 0.5 + 0.1 * self.sign * (images - self.sound).square().sum(1, keepdim=True)


def pair():
    sound = 0.2 + 0.6 * torch.rand(3, 3, 8, 8, generator=generator(1))
    target = torch.zeros(3, 1, 8, 8)
    target[:, :, 2:5, 2:5] = 1
    return sound + 0.2 * target * torch.rand(3, 3, 8, 8, generator=generator(2)), sound, target


def test_the_ideal_detector_is_aligned_and_its_negative_opposed():
    broken, sound, target = pair()
    aligned = misalignment(Distance(sound), broken, sound, target)
    assert aligned.item() == pytest.approx(0, abs=1e-5)
    against = misalignment(Distance(sound, -1.0), broken, sound, target)
    assert against.item() == pytest.approx(2, abs=1e-5)


def test_what_no_label_marks_counts_nothing():
    broken, sound, target = pair()
    target[1:] = 0
    one = misalignment(Distance(sound[:1]), broken, sound, target)
    assert one.item() == pytest.approx(0, abs=1e-5)
    assert misalignment(Distance(sound), broken, sound, torch.zeros_like(target)) == 0


def trained(steps, term=None):
    learner = Learner(SegformerDetector(SegformerConfig(prior=0.2), seed=1).train())
    settings = {"seed": 0, "batch": 4, "rate": 2e-3, "alignment": term}
    figures = [
        learn_step(learner, PAIRS, NO_AUGMENTATION, step=k, **settings) for k in range(steps)
    ]
    return learner, figures


def test_the_gradient_can_be_taught():
    learner, _ = trained(20)
    measured = reference_batch(PAIRS, 8, seed=5, step=0)
    before = misalignment(learner.model, *measured).item()
    for step in range(20):
        learner.update(misalignment(learner.model, *measured), 3e-4, 1.0, step)
    assert misalignment(learner.model, *measured).item() < before - 0.1


def test_a_step_reports_the_term_and_learns_from_it():
    with_it, figures = trained(1, Alignment(PAIRS, 1.0, 4))
    without, plain = trained(1)
    assert figures[0]["loss"] == plain[0]["loss"]
    assert 0 < figures[0]["misalignment"] < 2 and "misalignment" not in plain[0]
    weights = (one.model.state_dict().values() for one in (with_it, without))
    assert any(not torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_state_of_the_detector_stays_but_for_its_gradient():
    detector = trained(1)[0].model
    before = {name: t.clone() for name, t in detector.state_dict().items()}
    misalignment(detector, *reference_batch(PAIRS, 4, seed=5, step=0)).backward()
    assert detector.training
    assert all(torch.equal(before[n], t) for n, t in detector.state_dict().items())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in detector.parameters())


def test_batches_hold_the_original_of_each_image():
    broken, sound, target = reference_batch(PAIRS, 6, seed=3, step=2)
    changed = (broken - sound).abs().amax(dim=1, keepdim=True) > 0
    assert torch.equal(changed, target > 0)
    again = reference_batch(PAIRS, 6, seed=3, step=2)
    assert torch.equal(again[0], broken) and not torch.equal(
        reference_batch(PAIRS, 6, seed=3, step=3)[0], broken
    )


def test_of_each_category_the_nearest_pairs_teach():
    records = [sample.record for sample in PAIRS]
    chosen = nearest(PAIRS, records, 0.5)

    def distance(i):
        change = PAIRS[i].image.astype(float) - PAIRS[i].reference
        return (change[PAIRS[i].mask > 25] ** 2).sum()

    for category in ("disc", "bar"):
        every = [i for i, record in enumerate(records) if record.category == category]
        near = [distance(i) for i in every if i in chosen]
        far = [distance(i) for i in every if i not in chosen]
        assert len(near) == (len(every) + 1) // 2 and max(near) <= min(far)
    assert nearest(PAIRS, records, 1.0) == list(range(len(PAIRS)))
    unmarked = [replace(sample, mask=np.zeros_like(sample.mask)) for sample in PAIRS]
    unchanged = [replace(sample, reference=sample.image) for sample in PAIRS]
    assert nearest(unmarked, records, 1.0) == nearest(unchanged, records, 1.0) == []
    coarse = [replace(sample, mask=sample.mask[::2, ::2]) for sample in PAIRS]
    assert len(nearest(coarse, records, 1.0)) > len(PAIRS) / 2  # a mask may have a size of its own


def test_originals_join_the_batch_as_sound(monkeypatch):
    seen = []
    whole = learning.batch_loss

    def watched(detector, images, target, *rest):
        seen.append((images, target))
        return whole(detector, images, target, *rest)

    monkeypatch.setattr(learning, "batch_loss", watched)
    trained(1, Alignment(PAIRS, 1.0, batch=4, sound=3))
    images, target = seen[-1]
    originals = reference_batch(PAIRS, 4, seed=0, step=0)[1]
    assert len(images) == 4 + 3 and torch.equal(images[4:], originals[:3])
    assert target[4:].abs().max() == 0 < target[:4].max()


def test_without_references_the_cure_is_named():
    real = [sample for sample in toy_samples(6) if sample.reference is None]
    with pytest.raises(UserError, match="references/"):
        Alignment.among(real, [sample.record for sample in real], 1.0)
    assert Alignment.among(real, [sample.record for sample in real], 0.0) is None
