"""The FLUX wrapper against plain `FluxPipeline` and against formulas written out by hand."""

import pytest
import torch

from core import seeds as seeding
from core.errors import UserError
from tests.tiny import SIZE, T5_TOKENS, Flux, tiny_flux, tiny_pipeline

PROMPTS = ["a left hand, dark skin", "a face"]
VARIANTS = [{}, {"dynamic_shift": True}, {"guidance_embeds": True}]


def draw(model, prompts=PROMPTS, seeds=(3, 4), steps=4):
    text, schedule = model.encode_prompts(prompts), model.schedule(steps, SIZE, SIZE)
    latents = model.noise(seeds, SIZE, SIZE)
    with torch.no_grad():
        for i in range(steps):
            latents = model.step(latents, i, schedule, text)
        return model.decode(latents).clamp(0, 1)


def pipeline_images(pipeline, seeds=(3, 4), guidance=3.5):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        height=SIZE,
        width=SIZE,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        max_sequence_length=T5_TOKENS,
        output_type="pt",
    ).images


@pytest.mark.parametrize("options", VARIANTS)
def test_images_equal_the_plain_pipeline(options):
    pipeline = tiny_pipeline(**options)
    images = draw(Flux.from_pipeline(pipeline))
    assert torch.equal(images, pipeline_images(pipeline))
    assert not torch.equal(images, pipeline_images(pipeline, seeds=(3, 5)))  # control


def test_the_variants_differ_so_that_equality_means_something():
    static, dynamic, guided = (draw(tiny_flux(**options)) for options in VARIANTS)
    assert (static - dynamic).abs().max() > 1e-3
    strong = Flux.from_pipeline(tiny_pipeline(guidance_embeds=True), guidance=1.0)
    assert (draw(strong) - guided).abs().max() > 1e-3
    assert (draw(tiny_flux(), ["a bicycle", "a sign"]) - static).abs().max() > 1e-3


def test_one_images_noise_is_a_function_of_its_seed_alone():
    model = tiny_flux()
    together = model.noise([7, 8, 9], SIZE, SIZE)
    assert torch.equal(together[1], model.noise([8], SIZE, SIZE)[0])
    assert not torch.equal(together[0], together[1])


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


def test_latents_are_shifted_and_scaled():
    model = tiny_flux()
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = model.vae.encode(images * 2 - 1).latent_dist.mode()
        latents = model.encode(images)
        assert torch.equal(latents, (z - 0.15) * 1.3)
        assert (latents - z).abs().max() > 0.05
        expected = model.vae.decode(z).sample / 2 + 0.5
        torch.testing.assert_close(model.decode(latents), expected, atol=1e-5, rtol=1e-5)


def test_clean_estimate_of_the_last_step_is_the_last_step():
    model = tiny_flux()
    text, schedule = model.encode_prompts(PROMPTS), model.schedule(4, SIZE, SIZE)
    latents = model.noise([1, 2], SIZE, SIZE)
    with torch.no_grad():
        estimate = model.clean_estimate(latents, 3, schedule, text)
        torch.testing.assert_close(estimate, model.step(latents, 3, schedule, text))
        assert not torch.allclose(
            model.clean_estimate(latents, 0, schedule, text), model.step(latents, 0, schedule, text)
        )


@pytest.mark.parametrize("options", VARIANTS)
def test_offline_loss_written_out_by_hand(options):
    pipeline = tiny_pipeline(**options)
    model = Flux.from_pipeline(pipeline)
    clean = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    text = model.encode_prompts(PROMPTS)
    losses = []
    for b, seed in enumerate((11, 12)):
        generator = seeding.generator(seed)
        u = torch.randn(1, 1, 1, generator=generator).sigmoid()
        eps = torch.randn(4, 16, 16, generator=generator)
        slope = (1.15 - 0.5) / (4096 - 256)
        mu = torch.tensor(64 * slope + 0.5 - 256 * slope)
        shift = mu.exp() if options.get("dynamic_shift") else 3.0
        sigma = shift * u / (1 + (shift - 1) * u)
        x = (1 - sigma) * clean[b] + sigma * eps
        tokens = pipeline._pack_latents(x[None], 1, 4, 16, 16)
        v = pipeline.transformer(
            tokens,
            timestep=sigma.flatten(),
            guidance=torch.tensor([3.5]) if options.get("guidance_embeds") else None,
            encoder_hidden_states=text["text"][b : b + 1],
            pooled_projections=text["pooled"][b : b + 1],
            txt_ids=torch.zeros(T5_TOKENS, 3),
            img_ids=pipeline._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32),
        ).sample
        target = pipeline._pack_latents((eps - clean[b])[None], 1, 4, 16, 16)
        losses.append((v - target).square().mean())
    expected = torch.stack(losses).mean()
    actual = model.offline_loss(clean, text, [11, 12])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    other = model.offline_loss(clean, text, [11, 13])
    assert (other - expected).abs() > 1e-4  # control: the seeds matter


def test_everything_is_frozen():
    model = tiny_flux()
    modules = (model.network, model.vae, model.text["text_encoder"], model.text["text_encoder_2"])
    assert not any(weight.requires_grad for module in modules for weight in module.parameters())


def test_sizes_that_do_not_divide():
    model = tiny_flux()
    for call in (lambda: model.schedule(4, 30, 32), lambda: model.noise([0], 32, 2)):
        with pytest.raises(UserError, match="divide by 4"):
            call()


def test_presets_name_modules_that_exist():
    model = tiny_flux()
    names = [name for name, _ in model.network.named_modules()]
    for preset in ("attention", "attention+mlp"):
        for target in model.lora_targets(preset):
            assert any(name == target or name.endswith("." + target) for name in names), target
    with pytest.raises(UserError, match="attention"):
        model.lora_targets("everything")
