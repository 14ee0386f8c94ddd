"""A decoder in channels_last: the same images, and the same gradient."""

import pytest
import torch

from base_models.layout import decoder_in_channels_last
from tests.base_models.families import CASES
from tests.chain import inputs
from tests.tiny import SIZE


def decoded(model, latents):
    """Image, and gradient of its mean square."""
    learnt = latents.clone().requires_grad_()
    image = model.decode(learnt)
    image.square().mean().backward()
    return image.detach(), learnt.grad


@pytest.mark.parametrize("case", ["flux", "sdxl", "sd3"])
def test_images_and_gradient_stay(case):
    model = CASES[case].model()
    noise, _, _ = inputs(model, 1, SIZE)
    before, pull = decoded(model, noise)
    decoder_in_channels_last(model)
    kernel = model.vae.decoder.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    after, other = decoded(model, noise)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    torch.testing.assert_close(other, pull, rtol=1e-3, atol=float(1e-3 * pull.abs().max()))
