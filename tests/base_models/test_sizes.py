"""What a base draws where nothing is said: its own size and its family's steps."""

import json
import shutil

import pytest

from base_models.sizes import check_steps, checked_size, own_size, usual_size, usual_steps
from core.errors import UserError
from miniature.bases import base_folder
from tests.base_models.families import CASES
from tests.tiny import save_tiny, tiny_pipeline


@pytest.mark.parametrize("name", ["newest", "sdxl", "kolors", "ddpm", "ldm"])
def test_the_miniatures_bases_say_their_own_size(name):
    assert usual_size(str(base_folder(name)), None, None) == (64, 64)


@pytest.mark.parametrize("name", ["sdxl", "sd", "kolors", "sd3"])
def test_a_base_that_names_its_latents_draws_as_its_pipeline_does_by_itself(name, tmp_path):
    pipeline = CASES[name].pipeline()
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    network.register_to_config(sample_size=6)
    pipeline.save_pretrained(tmp_path)
    side = 6 * pipeline.vae_scale_factor
    assert own_size(tmp_path) == (side, side)


def test_of_flux_the_autoencoder_says_it(tmp_path):
    base = save_tiny(tmp_path / "tiny")
    config = base / "vae/config.json"
    said = json.loads(config.read_text())
    change(config, sample_size=48)
    assert usual_size(str(base), None, None) == (48, 48)
    assert usual_size(str(base), 16, None) == (16, 48)
    assert usual_size(str(base), 16, 24) == (16, 24)
    del said["sample_size"]
    config.write_text(json.dumps(said))
    assert usual_size(str(base), None, None) == (1024, 1024)


def change(config, **changes):
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


@pytest.mark.parametrize("said", ["big", "64", [8], [], {}, 8.0, 0, -8, [8, "8"], True], ids=str)
def test_a_size_that_is_none_is_damage(tmp_path, said):
    base = save_tiny(tmp_path / "tiny")
    change(base / "vae/config.json", sample_size=said)
    with pytest.raises(UserError, match=r"vae/config.json is damaged .sample_size."):
        usual_size(str(base), None, None)


@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_a_config_that_is_missing_is_named(tmp_path, part):
    base = save_tiny(tmp_path / "tiny")
    (base / part / "config.json").unlink()
    for height in (None, 64):
        with pytest.raises(UserError, match=f"{part}/config.json is missing"):
            checked_size(str(base), height, height)


def test_levels_that_are_no_number_are_damage(tmp_path):
    base = shutil.copytree(base_folder("ddpm"), tmp_path / "base")
    change(base / "scheduler/scheduler_config.json", num_train_timesteps="many")
    with pytest.raises(UserError, match="num_train_timesteps"):
        check_steps(str(base), 2)


def test_a_single_files_configs_lie_beside_it(tmp_path):
    pipeline = CASES["sd"].pipeline()
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "sd.safetensors").touch()
    assert own_size(tmp_path / "sd.safetensors") == own_size(tmp_path)


def test_a_size_that_is_asked_for_is_checked(tmp_path):
    base = str(save_tiny(tmp_path / "tiny"))
    with pytest.raises(UserError, match="divide by 4"):
        checked_size(base, 6, None)


def test_there_are_no_more_steps_than_levels_of_noise():
    base = str(base_folder("ddpm"))
    check_steps(base, 1000)
    check_steps(str(base_folder("newest")), 1001)  # a flow's are any
    with pytest.raises(UserError, match="1000 levels of noise"):
        check_steps(base, 1001)


def test_the_steps_of_a_family(tmp_path):
    assert usual_steps(str(save_tiny(tmp_path / "schnell"))) == 4
    tiny_pipeline(guidance_embeds=True).save_pretrained(tmp_path / "dev")
    assert usual_steps(str(tmp_path / "dev")) == 28
    assert usual_steps(str(base_folder("sdxl"))) == 25
