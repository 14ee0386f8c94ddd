"""One step learnt anew: the gradient is that of one graph, the known noise is taken off."""

import pytest
import torch

from core.seeds import mix
from tests.base_models.families import CASES
from tests.chain import Spots, equal, gradients, inputs, score, with_adapters
from tests.tiny import SIZE
from treat.drawings import accumulate_gradient, drawings, redraw_step
from treat.pixel_loss import straight_through_clamp
from treat.step import Chain, draw
from treat.terms import RewardTerm

T = 4


def learn(chain, *drawn):
    accumulate_gradient(chain, drawn, RewardTerm(1.0, "threshold", 0.4, Spots()), 1.0)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("i", [0, 2, 3])
@pytest.mark.parametrize("name", ["flux", "sdxl", "sd"])
def test_the_gradient_equals_that_of_one_graph(name, i, recompute):
    model = with_adapters(CASES[name].model())
    noise, schedule, text = inputs(model, T, SIZE)
    clean, chain = model.noise([8, 9], SIZE, SIZE), Chain(model, schedule, text)
    learn(chain, redraw_step(chain, clean, i, noise, recompute))
    ours = gradients(model)

    leaving = model.step(model.noised(clean, i, schedule, noise), i, schedule, text)
    zero, one = torch.zeros_like(clean), torch.ones_like(clean)
    over = model.noised(zero, i + 1, schedule, noise)
    again = (leaving - over) / model.noised(one, i + 1, schedule, zero)
    score(straight_through_clamp(model.decode(again))).backward()
    for mine, theirs in zip(ours, gradients(model), strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
    assert any(gradient.abs().max() > 0 for gradient in ours)


def test_another_step_gives_another_gradient():
    model = with_adapters(CASES["flux"].model())
    noise, schedule, text = inputs(model, T, SIZE)
    clean, chain, found = model.noise([8, 9], SIZE, SIZE), Chain(model, schedule, text), []
    for i in (1, 3):
        learn(chain, redraw_step(chain, clean, i, noise))
        found.append(gradients(model))
    assert not equal(*found)


def test_redraws_of_one_drawing_are_averaged_each_under_noise_of_its_own():
    model = with_adapters(CASES["flux"].model())
    noise, schedule, text = inputs(model, T, SIZE)
    chain = Chain(model, schedule, text)
    term = RewardTerm(1.0, "threshold", 0.4, Spots())
    shown = accumulate_gradient(chain, drawings(chain, noise, [1, 3], [5, 6]), term, share=0.5)
    ours = gradients(model)

    finished, _ = draw(chain, noise, ())
    found, pixel = [], []
    for number, i in enumerate((1, 3)):
        fresh = model.noise([mix(5, number), mix(6, number)], SIZE, SIZE)
        learn(chain, redraw_step(chain, finished, i, fresh))
        term(model.decode(redraw_step(chain, finished, i, fresh).latents))
        found.append(gradients(model))
        pixel.append(term.figures["pixel"])
    for mine, first, second in zip(ours, *found, strict=True):
        torch.testing.assert_close(mine, 0.25 * (first + second))
    torch.testing.assert_close(shown["pixel"], sum(pixel) / 2)
    accumulate_gradient(chain, drawings(chain, noise, [1, 3], [5, 7]), term, share=0.5)
    assert not equal(ours, gradients(model))  # control: the seeds matter
