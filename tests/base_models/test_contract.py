"""One contract, every family: against the plain pipelines, and formulas written out by hand."""

from contextlib import nullcontext

import pytest
import torch

from base_models.sample import sample
from core import seeds as seeding
from core.contracts import DiffusionModel
from core.errors import UserError
from tests import chain
from tests.base_models.families import (
    CASES,
    EVERY,
    HEIGHT,
    PROMPTS,
    UNCONDITIONAL,
    WIDTH,
    draw,
    pipeline_images,
)
from tests.chain import equal, gradients, inputs, plain, split, with_adapters
from tests.tiny import SIZE, T5_TOKENS
from treat.drawings import redraw_step
from treat.lora import lora_parameters
from treat.offline import cache_prompts
from treat.step import Chain, scaled_input

prompted = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every = pytest.mark.parametrize("case", EVERY.values(), ids=EVERY.keys())
PLAIN = ("flux", "sdxl", "sd", "sd3", "kolors")
PLAIN_OF_ALL = (*PLAIN, "ddpm", "ldm")
prompted_family = pytest.mark.parametrize("case", [CASES[name] for name in PLAIN], ids=PLAIN)
family = pytest.mark.parametrize("case", [EVERY[n] for n in PLAIN_OF_ALL], ids=PLAIN_OF_ALL)
SAME = ("sdxl, DDIM", "sd, Euler", "ddpm, as DDIMPipeline")
"""Variants that walk the same path as their plain family."""


@prompted
def test_images_equal_the_plain_pipeline(case):
    pipeline = case.pipeline()
    model = case.model(pipeline)
    images = draw(model)
    assert torch.equal(images, pipeline_images(pipeline, model.guidance))
    assert not torch.equal(images, pipeline_images(pipeline, model.guidance, seeds=(3, 5)))
    assert (draw(model, ["a bicycle", "a sign"]) - images).abs().max() > 1e-3  # control: the text


@pytest.mark.parametrize("name", [n for n in EVERY if n not in (*PLAIN_OF_ALL, *SAME)])
def test_the_variants_differ_so_that_equality_means_something(name):
    images = draw(EVERY[name].model())
    assert (images - draw(EVERY[name.partition(",")[0]].model())).abs().max() > 1e-3


@every
def test_one_pass_gives_the_step_and_the_clean_estimate(case):
    model = case.model()
    noise, schedule, text = inputs(model, 4, SIZE)
    passes = []
    model.network.register_forward_pre_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        for i in (0, 3):
            after, clean = model.move(noise, i, schedule, text)
            assert torch.equal(after, model.step(noise, i, schedule, text))
            assert torch.equal(clean, model.clean_estimate(noise, i, schedule, text))
            assert not torch.equal(after, clean) or i == 3
    assert len(passes) == 6


@prompted
@pytest.mark.parametrize("steps", [1, 7])
def test_schedule_equals_the_plain_pipelines(case, steps):
    pipeline = case.pipeline()
    model = case.model(pipeline)
    schedule = model.schedule(steps, HEIGHT, WIDTH)
    pipeline_images(pipeline, model.guidance, steps=steps, output="latent")
    scheduler = pipeline.scheduler
    assert schedule.steps == steps
    assert torch.equal(schedule.timesteps, scheduler.timesteps.float())
    if hasattr(scheduler, "sigmas"):
        expected = scheduler.sigmas
    else:
        abar = [scheduler.alphas_cumprod[t] for t in scheduler.timesteps]
        abar = torch.stack([*abar, scheduler.final_alpha_cumprod])
        expected = ((1 - abar) / abar).sqrt()
    assert torch.equal(schedule.sigmas, expected)
    assert (schedule.sigmas.diff() < 0).all()


@prompted
def test_latents_are_shifted_and_scaled(case):
    model = case.model()
    images = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = model.vae.encode(images * 2 - 1).latent_dist.mode()
        latents = model.encode(images)
        torch.testing.assert_close(latents, case.scaled(z), atol=1e-6, rtol=1e-6)
        assert (latents - z).abs().max() > 0.05
        expected = model.vae.decode(z).sample / 2 + 0.5
        torch.testing.assert_close(model.decode(latents), expected, atol=1e-5, rtol=1e-5)
        assert (model.decode(z) - expected).abs().max() > 1e-3  # control: the scale counts


@every
def test_clean_estimate_of_the_last_step_is_what_the_step_leaves(case):
    model = case.model()
    text, schedule = model.encode_prompts(PROMPTS), model.schedule(4, SIZE, SIZE)
    latents = model.noise([1, 2], SIZE, SIZE)
    with torch.no_grad():
        clean = model.clean_estimate(latents, 3, schedule, text)
        after = model.step(latents, 3, schedule, text)
        if schedule.sigmas[-1]:
            # What is left of the noise in `latents`, in DDIM's scale.
            (abar, last) = (1 / (1 + sigma**2) for sigma in schedule.sigmas[-2:])
            eps = (latents - abar.sqrt() * clean) / (1 - abar).sqrt()
            clean = last.sqrt() * clean + (1 - last).sqrt() * eps
        torch.testing.assert_close(clean, after, atol=1e-4, rtol=1e-4)
        first = model.clean_estimate(latents, 0, schedule, text)
        assert not torch.allclose(first, model.step(latents, 0, schedule, text), atol=1e-2)


@every
@pytest.mark.parametrize("i", [0, 2])
def test_noised_is_where_a_perfect_model_finds_the_image_again(case, i):
    model = case.model()
    schedule = model.schedule(4, HEIGHT, WIDTH)
    clean, noise = (model.noise(seeds, HEIGHT, WIDTH) for seeds in ([1, 2], [3, 4]))
    latents = model.noised(clean, i, schedule, noise)
    perfect(model, clean, noise, schedule.sigmas[i])
    found = model.clean_estimate(latents, i, schedule, {})
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)
    other = model.clean_estimate(model.noised(clean, i, schedule, clean), i, schedule, {})
    assert (other - clean).abs().max() > 0.1  # control: that it is this noise counts


@every
@pytest.mark.parametrize("i", [0, 2, 3])
def test_a_step_redrawn_by_a_perfect_model_is_the_image_again(case, i):
    model = case.model()
    schedule = model.schedule(4, HEIGHT, WIDTH)
    clean, noise = (model.noise(seeds, HEIGHT, WIDTH) for seeds in ([1, 2], [3, 4]))
    perfect(model, clean, noise, schedule.sigmas[i])
    found = redraw_step(Chain(model, schedule, {}), clean, i, noise).latents
    torch.testing.assert_close(found, clean, atol=1e-3, rtol=1e-3)
    perfect(model, clean, clean, schedule.sigmas[i])
    other = redraw_step(Chain(model, schedule, {}), clean, i, noise).latents
    # Control: one that knows another noise. What the last step leaves of it is little.
    assert (other - clean).abs().max() > min(0.05, 0.5 * schedule.sigmas[i])


def perfect(model, clean, noise, sigma):
    """Let the model predict what it would if it knew image and noise."""
    if hasattr(model, "_velocity"):  # flow matching
        model._velocity = lambda *_: noise - clean
        return
    abar = 1 / (1 + sigma**2)
    v = abar.sqrt() * noise - (1 - abar).sqrt() * clean
    is_v = model.scheduler.config.prediction_type == "v_prediction"
    asked = "_predict" if model.family in ("ddpm", "ldm") else "_guided"
    setattr(model, asked, lambda *_, **__: v if is_v else noise)


def flux_prediction(pipeline, clean, eps, u, text):
    """(prediction, target) of one image: velocity at a logit-normal, shifted time."""
    sigma = shifted(pipeline, u, 1.15)
    x = (1 - sigma) * clean + sigma * eps
    guided = pipeline.transformer.config.guidance_embeds
    v = pipeline.transformer(
        pipeline._pack_latents(x, 1, 4, 16, 24),
        timestep=sigma.flatten(),
        guidance=torch.tensor([3.5]) if guided else None,
        encoder_hidden_states=text["text"],
        pooled_projections=text["pooled"],
        txt_ids=torch.zeros(T5_TOKENS, 3),
        img_ids=pipeline._prepare_latent_image_ids(1, 8, 12, "cpu", torch.float32),
    ).sample
    return v, pipeline._pack_latents(eps - clean, 1, 4, 16, 24)


def sd3_prediction(pipeline, clean, eps, u, text):
    """The same, and no guidance."""
    sigma = shifted(pipeline, u, 1.15)
    v = pipeline.transformer(
        (1 - sigma) * clean + sigma * eps,
        timestep=sigma.flatten() * 1000,
        encoder_hidden_states=text["text"],
        pooled_projections=text["pooled"],
    ).sample
    return v, eps - clean


def shifted(pipeline, u, top):
    """A time of 96 tokens, by the scheduler's shift."""
    slope = (top - 0.5) / (4096 - 256)
    mu = torch.tensor(96 * slope + 0.5 - 256 * slope)
    shift = mu.exp() if pipeline.scheduler.config.use_dynamic_shifting else 3.0
    return shift * u / (1 + (shift - 1) * u)


def unet_prediction(pipeline, clean, eps, t, text):
    """(prediction, target) of one image: epsilon or v at a uniform step, no guidance."""
    last, steps = (0.014, 1100) if "Kolors" in type(pipeline).__name__ else (0.012, 1000)
    betas = torch.linspace(0.00085**0.5, last**0.5, steps) ** 2
    abar = (1 - betas).cumprod(0)[t]
    sizes = torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]])
    added = {"text_embeds": text["pooled"], "time_ids": sizes} if "pooled" in text else None
    prediction = pipeline.unet(
        abar.sqrt() * clean + (1 - abar).sqrt() * eps,
        t,
        encoder_hidden_states=text["text"],
        added_cond_kwargs=added,
    ).sample
    v = abar.sqrt() * eps - (1 - abar).sqrt() * clean
    return prediction, v if pipeline.scheduler.config.prediction_type == "v_prediction" else eps


@prompted
def test_offline_loss_written_out_by_hand(case):
    pipeline = case.pipeline()
    model = case.model(pipeline)
    clean = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(5))
    text = model.encode_prompts(PROMPTS)
    losses = []
    for b, seed in enumerate((11, 12)):
        generator, row = seeding.generator(seed), {n: rows[b : b + 1] for n, rows in text.items()}
        if model.family in ("flux", "sd3"):
            time = torch.randn(1, 1, 1, generator=generator).sigmoid()
            predict = flux_prediction if model.family == "flux" else sd3_prediction
        else:
            steps = pipeline.scheduler.config.num_train_timesteps
            time, predict = torch.randint(steps, (1,), generator=generator), unet_prediction
        eps = torch.randn(4, 16, 24, generator=generator)
        prediction, target = predict(pipeline, clean[b : b + 1], eps[None], time, row)
        losses.append((prediction - target).square().mean())
    expected = torch.stack(losses).mean()
    actual = model.offline_loss(clean, text, [11, 12])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    other = model.offline_loss(clean, text, [11, 13])
    assert (other - expected).abs() > 1e-4  # control: the seeds matter


@pytest.mark.parametrize(
    ("name", "learning"),
    [(name, (0, 2)) for name in EVERY]
    + [(name, steps) for name in PLAIN_OF_ALL for steps in ((2,), (0, 1, 2))],
)
def test_replay_equals_plain_back_propagation_to_the_bit(name, learning):
    model = with_adapters(EVERY[name].model())
    given = inputs(model, 3, SIZE)
    ours = split(model, given, learning, 1.0, nullcontext)
    reference = plain(model, given, learning, 1.0, nullcontext)
    assert equal(ours, reference)
    assert sum(gradient.abs().sum() for gradient in reference) > 0
    other = plain(model, given, (1, 2), 1.0, nullcontext)
    assert not equal(ours, other)  # control: other steps give another gradient


@family
def test_noisy_latents_are_the_networks_first_argument(case):
    """So the share of the gradient that passes the network's input is linear in gamma."""
    model = case.model()
    noise, schedule, text = inputs(model, 3, SIZE)
    passed = []
    for gamma in (0.0, 0.5, 1.0):
        latents = noise.clone().requires_grad_()
        with scaled_input(model.network, gamma):
            loss = model.step(latents, 1, schedule, text).square().sum()
        passed += torch.autograd.grad(loss, latents)
    torch.testing.assert_close(passed[1], (passed[0] + passed[2]) / 2, rtol=1e-3, atol=1e-3)
    assert (passed[0] - passed[2]).abs().max() > 0.1


@family
def test_gradient_reaches_the_adapters_and_nothing_else(case):
    model = case.model()
    readers = [] if case in UNCONDITIONAL.values() else model._text_encoders()
    modules = (model.network, model.vae, *readers)
    weights = [weight for module in modules for weight in module.parameters()]
    assert not any(weight.requires_grad for weight in weights)
    with_adapters(model)
    given = inputs(model, 3, SIZE)
    split(model, given, (1, 2), 1.0, nullcontext)  # takes the adapters' gradients away
    assert all(weight.grad is None for weight in weights)
    model.offline_loss(given[0], given[2], [1, 2]).backward()
    assert all(weight.grad is None for weight in weights)
    adapters = lora_parameters(model.network)
    assert len(adapters) > 8 and all(found.abs().sum() > 0 for found in gradients(model))


@prompted_family
def test_rows_of_conditioning_are_all_that_a_step_needs(case, tmp_path):
    """Cached on disk and put together anew, after the text encoders are gone."""
    model = case.model()
    noise, schedule, text = inputs(model, 2, SIZE)
    cache = cache_prompts(tmp_path, model, "base", chain.PROMPTS)
    with torch.no_grad():
        expected = model.step(noise, 0, schedule, text)
        model.drop_text_encoders()
        assert not model._text_encoders()
        assert torch.equal(model.step(noise, 0, schedule, cache.rows([0, 1])), expected)
        swapped = model.step(noise.flip(0), 0, schedule, cache.rows([1, 0])).flip(0)
        torch.testing.assert_close(swapped, expected, rtol=1e-4, atol=1e-4)
        other = model.step(noise, 0, schedule, cache.rows([1, 0]))
        assert (other - expected).abs().max() > 1e-2  # control: the rows count


@family
def test_latents_stay_in_float32_with_weights_in_bfloat16(case):
    images = draw(case.model())
    half = case.model(case.pipeline().to(torch.bfloat16))
    text, schedule = half.encode_prompts(PROMPTS), half.schedule(3, HEIGHT, WIDTH)
    with torch.no_grad():
        after = half.step(half.noise([3, 4], HEIGHT, WIDTH), 0, schedule, text)
        clean = half.clean_estimate(after, 1, schedule, text)
        assert after.dtype == clean.dtype == half.decode(clean).dtype == torch.float32
    assert 0 < (draw(half) - images).abs().mean() < 0.1


@family
def test_one_images_noise_is_a_function_of_its_seed_alone(case):
    model = case.model()
    together = model.noise([7, 8, 9], SIZE, SIZE)
    assert torch.equal(together[1], model.noise([8], SIZE, SIZE)[0])
    assert not torch.equal(together[0], together[1])


@family
def test_is_a_diffusion_model(case):
    assert isinstance(case.model(), DiffusionModel)
    assert not isinstance(torch.nn.Identity(), DiffusionModel)


@prompted_family
def test_sizes_that_do_not_divide(case):
    model = case.model()
    grain = 4 if model.family in ("flux", "sd3") else 8
    for call in (lambda: model.schedule(4, 30, 32), lambda: model.noise([0], 32, 2)):
        with pytest.raises(UserError, match=f"divide by {grain}"):
            call()
    assert model.noise([0], grain, 2 * grain).shape[2:] == (grain // 2, grain)


@family
def test_presets_name_modules_that_exist(case):
    model = case.model()
    names = [name for name, _ in model.network.named_modules()]
    attention, all_of_them = (model.lora_targets(p) for p in ("attention", "attention+mlp"))
    assert set(attention) < set(all_of_them)
    for target in all_of_them:
        assert any(name == target or name.endswith("." + target) for name in names), target
    with pytest.raises(UserError, match="attention"):
        model.lora_targets("everything")


MISTAKES = {
    "a list of prompts: \\['a hand'\\]": {"prompts": "a hand"},
    "2 prompts and 1 seeds": {"prompts": ["a hand", "a face"]},
    "draws one image a seed": {"prompts": [], "seeds": []},
    "one step at least": {"steps": 0},
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_drawing_asked_for_wrongly_is_no_other_drawing(sentence):
    given = {"prompts": ["a hand"], "seeds": [1], "steps": 2} | MISTAKES[sentence]
    prompts, seeds = given.pop("prompts"), given.pop("seeds")
    with pytest.raises(UserError, match=sentence):
        sample(CASES["flux"].model(), prompts, seeds, height=SIZE, width=SIZE, **given)
