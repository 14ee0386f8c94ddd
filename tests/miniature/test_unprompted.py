"""The oracle without prompts takes an image for what it is."""

import torch

from core.seeds import generator
from miniature.law import CATEGORIES, draw
from miniature.paint import render
from miniature.unprompted import Unprompted


def test_valid_images_of_every_category_are_recognised_and_sound():
    images = torch.cat([render(draw(name, 1, generator(i))) for i, name in enumerate(CATEGORIES)])
    images = images.clamp(0, 1)
    bench = Unprompted()
    nothing = [""] * len(images)
    assert bench.meters(images, nothing)["category"].tolist() == list(CATEGORIES)
    assert not bench.flagged(images, nothing).any()
    broken = images.clone()
    broken[:, :, 20:32, 20:32] = torch.tensor([0.9, 0.1, 0.6]).view(3, 1, 1)
    assert bench.flagged(broken, nothing).all()
    maps = bench.judge(broken, nothing)
    assert (maps[:, :, 20:32, 20:32] > 0.5).float().mean() > 0.9
    assert (maps[:, :, 40:, 40:] > 0.5).float().mean() < 0.1
