"""Augmentations are pure in their generator, keep the range, and move labels with the image."""

import pytest
import torch

from core.seeds import generator
from detector import augment as a
from detector.augmentation import NO_AUGMENTATION, Augmentation

IMAGES = torch.rand(4, 3, 32, 32, generator=generator(1))
TARGET = torch.zeros(4, 1, 32, 32)
TARGET[:2, :, 8:12, 4:8] = 1
ALL = Augmentation(appearance=1, move=1, shrink=1)


def test_pure_in_the_generator():
    first = a.augment(IMAGES, TARGET, ALL, generator(3))
    again = a.augment(IMAGES, TARGET, ALL, generator(3))
    other = a.augment(IMAGES, TARGET, ALL, generator(4))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_range_shape_and_inputs_are_kept():
    before = IMAGES.clone(), TARGET.clone()
    images, target = a.augment(IMAGES, TARGET, ALL, generator(3))
    assert images.shape == IMAGES.shape and target.shape == TARGET.shape
    assert 0 <= images.min() and images.max() <= 1 and 0 <= target.min() and target.max() <= 1
    assert torch.equal(IMAGES, before[0]) and torch.equal(TARGET, before[1])


def test_none_changes_nothing():
    images, target = a.augment(IMAGES, TARGET, NO_AUGMENTATION, generator(3))
    assert torch.equal(images, IMAGES) and torch.equal(target, TARGET)


def test_appearance_changes_the_image():
    changed = a.change_appearance(IMAGES, ALL, generator(3))
    assert ((changed - IMAGES).abs().amax(dim=(1, 2, 3)) > 0.01).all()


def test_blur_keeps_constants_and_lowers_variation():
    sigma = torch.full((4, 1, 1, 1), 1.0)
    flat = torch.full_like(IMAGES, 0.3)
    torch.testing.assert_close(a.gaussian_blur(flat, sigma), flat)
    assert a.gaussian_blur(IMAGES, sigma).std() < 0.6 * IMAGES.std()


def test_sharpen_goes_both_ways():
    blurred = a.sharpen(IMAGES, torch.full((4, 1, 1, 1), -1.0), generator(0))
    sharper = a.sharpen(IMAGES, torch.full((4, 1, 1, 1), 1.0), generator(0))
    assert blurred.std() < IMAGES.std() < sharper.std()


def test_saturation_zero_is_gray_and_contrast_keeps_the_mean():
    gray = a.scale_saturation(IMAGES, torch.zeros(4, 1, 1, 1))
    torch.testing.assert_close(gray[:, 0], gray[:, 2])
    contrast = a.scale_contrast(IMAGES, torch.full((4, 1, 1, 1), 0.5))
    assert contrast.mean() == pytest.approx(IMAGES.mean().item(), abs=0.01)


def test_mirror_moves_labels_along_and_spares_text():
    marked = torch.cat([TARGET] * 3, dim=1)
    images, target = a.mirror(marked, TARGET, generator(5))
    torch.testing.assert_close(images[:, :1], target)
    assert (target != TARGET).flatten(1).any(1)[:2].any()
    images, _ = a.mirror(IMAGES, TARGET, generator(5), torch.zeros(4, dtype=torch.bool))
    assert torch.equal(images, IMAGES)


def test_shift_and_scale_moves_labels_along():
    marked = torch.cat([TARGET] * 3, dim=1)
    images, target = a.shift_and_scale(marked, TARGET, generator(5), chance=1.0)
    torch.testing.assert_close(images[:, :1], target)
    assert not torch.equal(target[:2], TARGET[:2])


def _shrink(images, target, below=0.1, scale=(0.3, 0.6)):
    return a.shrink_sound(images, target, generator(6), chance=1.0, below=below, scale=scale)


def test_only_images_without_artifact_shrink():
    images, _ = _shrink(IMAGES, TARGET)
    changed = (images != IMAGES).flatten(1).any(dim=1)
    assert changed.tolist() == [False, False, True, True]


def test_the_label_shrinks_along_and_the_frame_is_one_gray():
    weak = torch.full((1, 1, 32, 32), 0.05)
    white = torch.ones(1, 3, 32, 32)
    images, target = _shrink(white, weak)
    share = (target / 0.05).mean().item()
    assert 0.3**2 * 0.8 < share < 0.6**2 * 1.2
    torch.testing.assert_close(
        (target / 0.05)[images[:, :1] > 0.999],
        torch.ones(1).expand(int((images[:, :1] > 0.999).sum())),
    )
    outside = images[:, :1][target == 0]
    assert outside.std() < 1e-5


def test_adversarial_step_raises_the_loss_and_is_small():
    weight = torch.randn(1, 3, 32, 32, generator=generator(7))

    def loss(images, target):
        return ((images * weight).sum(1, keepdim=True) - target).square().mean()

    lengths = a.step_lengths(len(IMAGES), 0.03, generator(8), IMAGES)
    stepped = a.adversarial_step(IMAGES, TARGET, loss, lengths)
    assert loss(stepped, TARGET) > loss(IMAGES, TARGET)
    assert 0 < (stepped - IMAGES).abs().max() <= 0.03 + 1e-6
    assert not stepped.requires_grad
