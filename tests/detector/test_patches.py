"""Patches out of place: they change what they say, at any size."""

import pytest
import torch

from core.seeds import generator
from detector.augment import augment
from detector.augmentation import NO_AUGMENTATION
from detector.patches import CORRUPTIONS, LEAST, corrupt


def drawings(b: int, size: int, seed: int) -> torch.Tensor:
    """Smooth colours with structure at every scale."""
    coarse = torch.rand(b, 3, 8, 8, generator=generator(seed))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")


@pytest.mark.parametrize("size", [64, 160])
def test_a_corruption_touches_nothing_but_its_patch(size: int):
    g, images, others = generator(7), drawings(20, size, 8), drawings(20, size, 9)
    broken, changed = corrupt(images, others, g)
    assert (changed.flatten(1).sum(dim=1) >= LEAST * (size / 64) ** 2).all()
    touched = (broken != images).any(dim=1)
    assert (touched | ~changed).all()
    assert touched.float().mean(dim=(1, 2)).max() < 0.15
    assert broken.min() >= 0 and broken.max() <= 1


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_corruption_changes_something(kind: str):
    images, others = drawings(2, 64, 1), drawings(2, 64, 2)
    mixed = CORRUPTIONS[kind](images, others, generator(1))
    assert mixed.shape == images.shape and (mixed - images).abs().mean() > 0.005


def test_patches_of_an_augmentation_are_labelled_and_keep_the_labels_there():
    images, target = drawings(8, 64, 3), torch.zeros(8, 1, 64, 64)
    target[:, :, 30:34, 30:34] = 0.7
    settings = NO_AUGMENTATION.model_copy(update={"patches": 1.0})
    broken, marked = augment(images, target, settings, generator(4))
    moved = (broken - images).norm(dim=1, keepdim=True) > 0.25
    assert moved.flatten(1).any(dim=1).all()
    assert (marked[moved] == 1).all() and (marked >= target).all()
    assert (marked.flatten(1).mean(dim=1) < 0.3).all()
    half = settings.model_copy(update={"patches": 0.5})
    broken, marked = augment(images, target, half, generator(5))
    kept = (broken == images).flatten(1).all(dim=1)
    assert kept.any() and not kept.all()
    assert torch.equal(marked[kept], target[kept])
    same, label = augment(images, target, NO_AUGMENTATION, generator(4))
    assert torch.equal(same, images) and torch.equal(label, target)
