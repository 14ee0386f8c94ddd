"""Images redrawn by a model: a perfect one changes nothing, each image has its own noise."""

import pytest
import torch

from core.images import round_to_8bit
from core.seeds import generator
from tests.tiny import SIZE, tiny_flux
from treat.redraw import redraw

IMAGES = torch.nn.functional.interpolate(
    torch.rand(2, 3, 4, 4, generator=generator(1)), (SIZE, SIZE), mode="bilinear"
)


def redrawn(start, seeds=(3, 4), model=None):
    model = model or tiny_flux()
    return redraw(model, IMAGES, ["a face", "a sign"], seeds, steps=4, start=start)


@pytest.mark.parametrize("start", [0, 2, 3])
def test_a_perfect_model_gives_the_image_back(start):
    model = tiny_flux()
    clean, noise = model.encode(IMAGES), model.noise((3, 4), SIZE, SIZE)
    whole = round_to_8bit(model.decode(clean))
    model._velocity = lambda *_: noise - clean
    torch.testing.assert_close(redrawn(start, model=model), whole, atol=1.1 / 255, rtol=0)
    assert (redrawn(start) - whole).abs().max() > 0.05  # control: this one is not perfect


def test_an_image_is_a_function_of_its_seed():
    assert torch.equal(redrawn(2), redrawn(2)) and not torch.equal(redrawn(2), redrawn(1))
    other = redrawn(2, (3, 5))
    torch.testing.assert_close(redrawn(2)[0], other[0], atol=1.1 / 255, rtol=0)
    assert (redrawn(2)[1] - other[1]).abs().max() > 0.01
