"""Views: the image itself when one, an average with a gradient when several, the same each time."""

import torch

from detector.segformer import SegformerConfig, SegformerDetector, freeze
from treat.views import Views

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def reward() -> SegformerDetector:
    return freeze(SegformerDetector(SegformerConfig(prior=0.3), seed=2))


def test_one_view_is_the_image_to_the_bit():
    detector = reward()
    assert torch.equal(Views(detector, 1, [5, 6])(IMAGES), detector(IMAGES))


def test_several_views_depend_on_the_seeds_alone_and_carry_gradient():
    detector = reward()
    images = IMAGES.clone().requires_grad_()
    maps = Views(detector, 3, [5, 6])(images)
    assert torch.equal(maps, Views(detector, 3, [5, 6])(IMAGES))
    assert not torch.equal(maps, Views(detector, 3, [6, 5])(IMAGES))
    assert maps.shape == (2, 1, 64, 64) and 0 < maps.min() and maps.max() < 1
    maps.mean().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_an_image_has_the_same_views_in_any_batch():
    detector = reward()
    together = Views(detector, 3, [5, 6])(IMAGES)
    for i, seed in enumerate((5, 6)):
        alone = Views(detector, 3, [seed])(IMAGES[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


def test_gradients_of_more_views_agree_more():
    detector = reward()

    def gradient(number: int, seed: int) -> torch.Tensor:
        images = IMAGES.clone().requires_grad_()
        Views(detector, number, [seed, seed + 10])(images).mean().backward()
        assert images.grad is not None
        return images.grad.flatten()

    few, many = (
        torch.cosine_similarity(gradient(n, 1), gradient(n, 2), dim=0).item() for n in (2, 12)
    )
    assert many > few
