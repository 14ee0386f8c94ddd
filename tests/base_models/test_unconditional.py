"""Bases without prompts: against the plain pipelines, and what only they have."""

from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline

from base_models import unconditional
from base_models.checkpointing import recompute_blocks
from base_models.load import load_base
from base_models.sample import sample
from base_models.samplers import one_step_scheduler
from base_models.sizes import check_size
from core import seeds as seeding
from core.errors import UserError
from tests.base_models.families import HEIGHT, UNCONDITIONAL, WIDTH, V, draw
from tests.tiny import SIZE
from tests.tiny import unconditional as tiny

SEEDS = (3, 4)


def theirs(pipeline: Any, seeds=SEEDS, steps=3) -> torch.Tensor:
    """Images of the plain pipeline, of DDPM's through `DDIMPipeline` with eta 0."""
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=steps,
        output_type="np",
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def ours(model: Any, seeds=SEEDS, steps=3, size=(HEIGHT, WIDTH)) -> torch.Tensor:
    schedule = model.schedule(steps, *size)
    latents = model.noise(seeds, *size)
    with torch.no_grad():
        for i in range(steps):
            latents = model.step(latents, i, schedule, model.encode_prompts([""] * len(seeds)))
        return model.decode(latents).clamp(0, 1)


@pytest.mark.parametrize("scheduler", [{}, V, {"clip_sample": True}, {"steps_offset": 1}], ids=str)
def test_pixels_equal_the_plain_pipelines_to_the_bit(scheduler):
    pipeline = tiny.tiny_ddpm(tiny.ddpm(**scheduler))
    plain = DDIMPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler)
    images = ours(unconditional.pixels(pipeline))
    assert torch.equal(images, theirs(plain))
    assert not torch.equal(images, theirs(plain, seeds=(3, 5)))
    if scheduler:  # control: each of these counts
        assert not torch.equal(images, ours(unconditional.pixels(tiny.tiny_ddpm())))


@pytest.mark.parametrize("vq", [True, False])
def test_latents_equal_the_plain_pipelines_to_the_bit(vq):
    pipeline = tiny.tiny_ldm(vq=vq)
    images = ours(unconditional.latents(pipeline), size=(SIZE, SIZE))
    assert torch.equal(images, theirs(pipeline))
    assert not torch.equal(images, theirs(tiny.tiny_ldm(vq=not vq)))


def test_learnt_variances_have_no_part_in_a_step():
    """DDPM's own step at its mean, where the next one is so near that DDIM's is the same."""
    pipeline = tiny.tiny_improved()
    model = unconditional.pixels(pipeline)
    noise = model.noise(SEEDS, HEIGHT, WIDTH)
    with torch.no_grad():
        whole = pipeline.unet(noise, 500).sample
        assert whole.shape[1] == 6
        assert torch.equal(model._predict(noise, torch.tensor(500)), whole[:, :3])
        before = ours(model)
        pipeline.unet.conv_out.weight[3:] += 1.0
        assert torch.equal(ours(model), before)
        pipeline.unet.conv_out.weight[:3] += 0.1
        assert not torch.equal(ours(model), before)  # control


def test_schedule_is_the_plain_schedulers():
    pipeline = tiny.tiny_ddpm()
    plain = DDIMPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler)
    schedule = unconditional.pixels(pipeline).schedule(7, HEIGHT, WIDTH)
    theirs(plain, steps=7)
    scheduler = plain.scheduler
    assert torch.equal(schedule.timesteps, scheduler.timesteps.float())
    abar = [*scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod]
    expected = ((1 - torch.stack(abar)) / torch.stack(abar)).sqrt()
    assert torch.equal(schedule.sigmas, expected) and expected[-1] == 0


def test_latents_of_an_ldm_are_scaled_and_pixels_are_centred():
    images = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    pixels = UNCONDITIONAL["ddpm"].model()
    assert torch.equal(pixels.encode(images), images * 2 - 1)
    torch.testing.assert_close(pixels.decode(images * 2 - 1), images)
    for name in ("ldm", "ldm, AutoencoderKL"):
        model = UNCONDITIONAL[name].model()
        with torch.no_grad():
            found = model.vae.encode(images * 2 - 1)
            z = found.latents if name == "ldm" else found.latent_dist.mode()
            torch.testing.assert_close(model.encode(images), z * 0.7)
            torch.testing.assert_close(model.decode(z * 0.7), model.vae.decode(z).sample / 2 + 0.5)
            # Control: the scale counts (a VQ decoder looks up the nearest code, which it may hide).
            assert (model.encode(images) - z).abs().max() > 0.01


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_offline_loss_written_out_by_hand(name):
    model = UNCONDITIONAL[name].model()
    clean = torch.randn(2, model.channels, 16, 24, generator=torch.Generator().manual_seed(5))
    losses = []
    for b, seed in enumerate((11, 12)):
        generator = seeding.generator(seed)
        t = torch.randint(1000, (1,), generator=generator)
        eps = torch.randn(clean.shape[1:], generator=generator)
        abar = model.scheduler.alphas_cumprod[t]
        x = abar.sqrt() * clean[b : b + 1] + (1 - abar).sqrt() * eps
        prediction = model.network(x, t).sample[:, : model.channels]
        v = abar.sqrt() * eps - (1 - abar).sqrt() * clean[b : b + 1]
        target = v if name.endswith("v") else eps
        losses.append((prediction - target).square().mean())
    actual = model.offline_loss(clean, {}, [11, 12])
    torch.testing.assert_close(actual, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)
    assert (model.offline_loss(clean, {}, [11, 13]) - actual).abs() > 1e-4  # control


@pytest.mark.parametrize("name", ["ddpm", "ldm", "ldm, AutoencoderKL", "ddpm, as DDIMPipeline"])
def test_a_saved_folder_opens_to_the_same_model_and_knows_its_sizes(name, tmp_path):
    pipeline = UNCONDITIONAL[name].pipeline()
    pipeline.save_pretrained(tmp_path)
    model = load_base(str(tmp_path))
    assert torch.equal(draw(model), draw(UNCONDITIONAL[name].model(pipeline)))
    assert not any(weight.requires_grad for weight in model.network.parameters())
    grain = 4 if name.startswith("ldm") else 2
    check_size(str(tmp_path), 3 * grain, grain)
    for height in (grain // 2, 3 * grain + 1):
        with pytest.raises(UserError, match=f"divide by {grain}"):
            check_size(str(tmp_path), height, grain)
        with pytest.raises(UserError, match=f"divide by {grain}"):
            model.schedule(4, height, grain)


def test_prompts_say_nothing_but_count():
    model = UNCONDITIONAL["ddpm"].model()
    images = [
        sample(model, prompts, SEEDS, steps=2, height=SIZE, width=SIZE)
        for prompts in (["a hand", "a face"], ["", ""])
    ]
    assert torch.equal(*images) and len(images[0]) == 2


def test_pixels_of_a_clipped_base_have_no_place_among_latents():
    clipped = tiny.ddim(clip_sample=True)
    assert one_step_scheduler(clipped, pixels=True) is clipped
    with pytest.raises(UserError, match="set clip_sample to false"):
        unconditional.latents(tiny.tiny_ldm(clipped))


def test_bases_that_ask_for_a_class_are_refused():
    with pytest.raises(UserError, match="class label"):
        unconditional.pixels(tiny.tiny_ddpm(num_class_embeds=3))


def test_blocks_that_are_computed_again_give_the_same_image():
    model = UNCONDITIONAL["ddpm"].model()
    before = ours(model)
    recompute_blocks(model, network=True, decoder=True)
    assert torch.equal(ours(model), before)
