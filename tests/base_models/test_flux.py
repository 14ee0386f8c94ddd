"""What only FLUX has, beyond the contract: embedded guidance, and the length of T5's prompts."""

import torch

from base_models.flux import Flux
from tests.base_models.families import PROMPTS, draw
from tests.tiny import T5_TOKENS, tiny_flux, tiny_pipeline


def test_guidance_changes_the_images_of_networks_that_take_it():
    images = [
        draw(Flux.from_pipeline(tiny_pipeline(guidance_embeds=embeds), guidance=guidance))
        for embeds in (False, True)
        for guidance in (1.0, 3.5)
    ]
    assert torch.equal(images[0], images[1])
    assert (images[2] - images[3]).abs().max() > 1e-3


def test_guidance_reaches_only_networks_that_take_it():
    seen = []

    def remember(_module, _args, kwargs):
        seen.append(kwargs["guidance"])

    for options in ({}, {"guidance_embeds": True}):
        model = tiny_flux(**options)
        model.network.register_forward_pre_hook(remember, with_kwargs=True)
        draw(model, steps=1)
    assert seen[0] is None
    assert torch.equal(seen[1], torch.full((2,), 3.5))


def test_text_length_from_the_tokenizer_or_the_argument():
    assert tiny_flux().encode_prompts(PROMPTS)["text"].shape[1] == T5_TOKENS
    short = Flux.from_pipeline(tiny_pipeline(), text_tokens=9)
    assert short.encode_prompts(PROMPTS)["text"].shape[1] == 9
    long = tiny_pipeline()
    long.tokenizer_2.model_max_length = 512
    assert Flux.from_pipeline(long).text_tokens == 256
    long = tiny_pipeline(guidance_embeds=True)
    long.tokenizer_2.model_max_length = 512
    assert Flux.from_pipeline(long).text_tokens == 512
