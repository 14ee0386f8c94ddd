"""The shipped bases: small, complete, and the same images from plain diffusers as from ours."""

import pytest
import torch
from diffusers import DDIMPipeline, DiffusionPipeline, FluxPipeline

from base_models.load import load_base
from base_models.sample import sample
from miniature.bases import GRADES, SHIPPED, base_folder
from miniature.text import T5_LENGTH

PROMPT = "a left hand, fingers spread, tan skin, over snow"


def test_the_flux_grades_stay_under_25_megabytes_and_all_under_45():
    files = [path for grade in GRADES for path in (SHIPPED / grade).rglob("*")]
    files = [path for path in files if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 25e6
    all_files = [p for p in SHIPPED.rglob("*") if p.is_file() and not p.is_symlink()]
    assert sum(path.stat().st_size for path in all_files) < 45e6


@pytest.mark.parametrize("grade", GRADES)
def test_plain_diffusers_draws_what_we_draw(grade: str):
    folder = base_folder(grade)
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT, height=64, width=64, num_inference_steps=4, max_sequence_length=T5_LENGTH,
        generator=torch.Generator().manual_seed(3), output_type="pt",
    ).images  # fmt: skip
    ours = sample(load_base(str(folder)), [PROMPT], [3], steps=4, height=64, width=64)
    # Ours is rounded to 8 bits.
    assert (ours - theirs).abs().max() <= 0.5 / 255 + 1e-5


@pytest.mark.parametrize("name", ["sdxl", "kolors"])
def test_plain_diffusers_draws_what_a_shipped_unet_draws(name: str):
    pipeline = DiffusionPipeline.from_pretrained(base_folder(name))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT, height=64, width=64, num_inference_steps=4,
        generator=torch.Generator().manual_seed(3), output_type="pt",
    ).images  # fmt: skip
    ours = sample(load_base(str(base_folder(name))), [PROMPT], [3], steps=4, height=64, width=64)
    assert (ours - theirs).abs().max() <= 0.5 / 255 + 1e-4
    assert theirs.std() > 0.1


@pytest.mark.parametrize("name", ["ddpm", "ldm"])
def test_plain_diffusers_draws_what_a_shipped_base_without_prompts_draws(name: str):
    pipeline = DiffusionPipeline.from_pretrained(base_folder(name))
    if name == "ddpm":
        pipeline = DDIMPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(num_inference_steps=4, generator=torch.Generator().manual_seed(3),
                     output_type="np").images  # fmt: skip
    theirs = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    ours = sample(load_base(str(base_folder(name))), [""], [3], steps=4, height=64, width=64)
    assert (ours - theirs).abs().max() <= 0.5 / 255 + 1e-4
    assert theirs.std() > 0.1


def test_no_file_of_a_base_names_a_place_on_the_machine_that_made_it():
    for path in SHIPPED.rglob("*.json"):
        assert "/home" not in path.read_text() and '"_name_or_path": "/' not in path.read_text()
