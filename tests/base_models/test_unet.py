"""What only UNets have, beyond the contract: guidance in two halves, samplers, a VAE in fp32."""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)

from base_models import kolors, sd, sdxl, unet
from base_models.samplers import one_step_scheduler
from core.errors import UserError
from tests.base_models.families import PROMPTS, draw
from tests.tiny import SIZE, unets


def pull(model):
    """A step where both halves say the same, and its gradient by each of them."""
    rows, schedule = model.encode_prompts(PROMPTS)["text"], model.schedule(3, SIZE, SIZE)
    text = {name: rows.clone().requires_grad_() for name in ("text", "empty_text")}
    after = model.step(model.noise([1, 2], SIZE, SIZE), 1, schedule, text)
    return after, *torch.autograd.grad(after.square().sum(), list(text.values()))


def test_gradient_through_both_halves_or_the_prompts_alone():
    pipeline = unets.tiny_sd()
    whole, said, empty = pull(sd.from_pipeline(pipeline, guidance=3.0))
    same, said_alone, nothing = pull(sd.from_pipeline(pipeline, guidance=3.0, learn_empty=False))
    assert torch.equal(whole, same)
    assert torch.equal(said, said_alone) and said.abs().max() > 1
    assert not nothing.abs().sum()
    # empty + 3 (said - empty): -2 parts of the one, 3 of the other.
    torch.testing.assert_close(empty * 3, said * -2, rtol=1e-3, atol=1e-3)


def test_without_guidance_the_empty_prompt_is_not_asked():
    model, sizes = sdxl.from_pipeline(unets.tiny_sdxl(), guidance=1.0), []
    model.network.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    draw(model, steps=2)
    model.guidance = 1.5
    draw(model, steps=1)
    assert sizes == [2, 2, 4]


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_of_sdxl(zeros):
    model = sdxl.from_pipeline(unets.tiny_sdxl(force_zeros=zeros))
    text = model.encode_prompts(PROMPTS)
    read = model.encode_prompts(["", ""])
    for name in ("text", "pooled"):
        expected = torch.zeros_like(text[name]) if zeros else read[name]
        assert torch.equal(text["empty_" + name], expected)
        assert read[name].abs().sum() > 0


def test_a_negative_prompt_can_be_put_in_by_hand():
    """The empty half is plain conditioning: other rows there, and guidance leads away from them."""
    pipeline: Any = unets.tiny_sd()
    pipeline.set_progress_bar_config(disable=True)
    model = sd.from_pipeline(pipeline)
    text = dict(model.encode_prompts(PROMPTS))
    text["empty_text"] = model.encode_prompts(["a sign", "a tree"])["text"]
    schedule, latents = model.schedule(2, SIZE, SIZE), model.noise([3, 4], SIZE, SIZE)
    with torch.no_grad():
        for i in range(2):
            latents = model.step(latents, i, schedule, text)
    expected = pipeline(
        PROMPTS,
        negative_prompt=["a sign", "a tree"],
        height=SIZE,
        width=SIZE,
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(s) for s in (3, 4)],
        output_type="latent",
    ).images
    assert torch.equal(latents, expected)


def test_pndm_becomes_ddim_at_the_same_noise_levels_and_says_so():
    with pytest.warns(UserWarning, match="DDIM"):
        model = sd.from_pipeline(unets.tiny_sd(unets.pndm()))
    assert torch.equal(draw(model), draw(sd.from_pipeline(unets.tiny_sd(unets.ddim()))))
    # Control: DDIM's own defaults are others, and would clip.
    other = unets.ddim(clip_sample=True, set_alpha_to_one=True, steps_offset=0)
    with pytest.raises(UserError, match="clip_sample"):
        sdxl.from_pipeline(unets.tiny_sdxl(other))


SAMPLERS = {
    "ancestral": (EulerAncestralDiscreteScheduler(), "EulerAncestral.* set EulerDiscreteScheduler"),
    "multistep": (DPMSolverMultistepScheduler(), "looks back at earlier steps"),
    "clipped": (unets.ddim(clip_sample=True), "clip_sample to false"),
    "thresholded": (unets.ddim(thresholding=True), "thresholding to false"),
    "x0": (unets.euler(prediction_type="sample"), "'sample', not epsilon or v"),
    "x0 by PNDM": (unets.pndm(prediction_type="sample"), "'sample', not epsilon or v"),
    "continuous": (
        unets.euler(prediction_type="v_prediction", timestep_type="continuous"),
        "continuous times",
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("ignore:This base's PNDM")
def test_samplers_that_cannot_be_treated(name):
    scheduler, message = SAMPLERS[name]
    with pytest.raises(UserError, match=message):
        one_step_scheduler(scheduler)
    assert one_step_scheduler(unets.euler())  # control


def test_networks_with_guidance_distilled_into_them():
    pipeline = unets.tiny_sd()
    pipeline.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(UserError, match="distilled"):
        sd.from_pipeline(pipeline)


def test_numbers_of_steps_that_a_scheduler_does_not_have():
    model = sdxl.from_pipeline(unets.tiny_sdxl(unets.euler(timestep_spacing="trailing")))
    for steps in (0, 1001):
        with pytest.raises(UserError, match="between 1 and 1000"):
            model.schedule(steps, SIZE, SIZE)
    with pytest.raises(UserError, match="no 61 steps"):  # rounding makes them 62
        model.schedule(61, SIZE, SIZE)
    assert model.schedule(60, SIZE, SIZE).steps == 60


def test_drawing_leaves_the_bases_scheduler_as_it_was():
    model = sdxl.from_pipeline(unets.tiny_sdxl())
    before = {name: str(value) for name, value in vars(model.scheduler).items()}
    first = draw(model)
    draw(model, steps=5)
    assert {name: str(value) for name, value in vars(model.scheduler).items()} == before
    assert torch.equal(draw(model), first)


def test_an_autoencoder_that_overflows_in_fp16_is_kept_in_fp32():
    for force, kept in ((True, torch.float32), (False, torch.float16)):
        pipeline = unets.tiny_sdxl(vae={"force_upcast": force})
        pipeline.vae.half()
        assert sdxl.from_pipeline(pipeline).vae.dtype == kept


def test_zeros_for_the_empty_prompt_of_kolors():
    pipeline = unets.tiny_kolors()
    pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    with pytest.raises(UserError, match="model_index.json"):
        kolors.from_pipeline(pipeline)


def test_grain_of_large_cells():
    assert [unet.grain(cells) for cells in (2, 8, 16)] == [8, 8, 16]
