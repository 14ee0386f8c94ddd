"""One step learnt anew: the gradient is that of one graph, the known noise is taken off."""

import pytest
import torch

from tests.base_models.families import CASES
from tests.chain import equal, gradients, inputs, score, with_adapters
from tests.tiny import SIZE
from treat.direct import redraw_step
from treat.step import Chain, latent_gradient, replay

T = 4


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("i", [0, 2, 3])
@pytest.mark.parametrize("name", ["flux", "sdxl", "sd"])
def test_the_gradient_equals_that_of_one_graph(name, i, recompute):
    model = with_adapters(CASES[name].model())
    noise, schedule, text = inputs(model, T, SIZE)
    clean, chain = model.noise([8, 9], SIZE, SIZE), Chain(model, schedule, text)
    latents, tape, share = redraw_step(chain, clean, i, noise, recompute)
    replay(chain, [tape], share * latent_gradient(chain, latents, score))
    ours = gradients(model)

    leaving = model.step(model.noised(clean, i, schedule, noise), i, schedule, text)
    zero, one = torch.zeros_like(clean), torch.ones_like(clean)
    over = model.noised(zero, i + 1, schedule, noise)
    again = (leaving - over) / model.noised(one, i + 1, schedule, zero)
    score(model.decode(again)).backward()
    for mine, theirs in zip(ours, gradients(model), strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
    assert any(gradient.abs().max() > 0 for gradient in ours)


def test_another_step_gives_another_gradient():
    model = with_adapters(CASES["flux"].model())
    noise, schedule, text = inputs(model, T, SIZE)
    clean, chain, found = model.noise([8, 9], SIZE, SIZE), Chain(model, schedule, text), []
    for i in (1, 3):
        latents, tape, share = redraw_step(chain, clean, i, noise)
        replay(chain, [tape], share * latent_gradient(chain, latents, score))
        found.append(gradients(model))
    assert not equal(*found)
