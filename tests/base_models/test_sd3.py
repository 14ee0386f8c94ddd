"""What only Stable Diffusion 3 has: an optional T5, places up to a limit, guidance's two halves."""

import pytest
import torch

from base_models.load import load_base
from base_models.sd3 import StableDiffusion3
from base_models.sizes import check_size
from core.errors import UserError
from tests.base_models.families import draw
from tests.chain import inputs
from tests.tiny import SIZE, T5_TOKENS
from tests.tiny.sd3 import tiny_sd3


@pytest.mark.parametrize("t5", [True, False])
def test_a_folder_with_and_without_t5(tmp_path, t5):
    pipeline = tiny_sd3(t5=t5)
    pipeline.save_pretrained(tmp_path)
    options = {} if t5 else {"text_tokens": T5_TOKENS}
    assert torch.equal(
        draw(load_base(str(tmp_path), **options)), draw(StableDiffusion3(pipeline, **options))
    )


def test_t5_reads_as_many_tokens_as_it_was_trained_with():
    assert StableDiffusion3(tiny_sd3()).text_tokens == T5_TOKENS
    assert StableDiffusion3(tiny_sd3(t5=False)).text_tokens == 256
    long = tiny_sd3()
    long.tokenizer_3.model_max_length = 512
    assert StableDiffusion3(long).text_tokens == 256


def test_the_places_that_it_knows_are_not_left(tmp_path):
    pipeline = tiny_sd3()
    model = StableDiffusion3(pipeline)  # 24 places of 4 pixels
    pipeline.save_pretrained(tmp_path)
    check_size(str(tmp_path), 96, 48)
    with pytest.raises(UserError, match="places up to 96 pixels"):
        check_size(str(tmp_path), 96, 128)
    assert model.noise([0], 96, 48).shape == (1, 4, 48, 24)
    with pytest.raises(UserError, match="places up to 96 pixels"):
        model.noise([0], 96, 100)


def test_the_empty_half_may_be_left_out_of_the_gradient():
    steps, gradients = [], []
    for learn_empty in (True, False):
        model = StableDiffusion3(tiny_sd3(), learn_empty=learn_empty)
        noise, schedule, text = inputs(model, 2, SIZE)
        latents = noise.clone().requires_grad_()
        step = model.step(latents, 0, schedule, text)
        steps.append(step.detach())
        gradients += torch.autograd.grad(step.square().sum(), latents)
    assert torch.equal(*steps)
    assert (gradients[0] - gradients[1]).abs().max() > 0.1


def test_the_encoders_are_gone_when_dropped():
    model = StableDiffusion3(tiny_sd3())
    model.drop_text_encoders()
    with pytest.raises(RuntimeError, match="dropped"):
        model.encode_prompts(["a hand"])
