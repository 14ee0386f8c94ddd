"""The builder makes three grades that plain diffusers opens, and takes up where it stopped."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    KolorsPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file

from base_models.load import load_base
from core.errors import UserError
from core.run import PAUSED, Run
from miniature import build
from miniature.bases import GRADES, SHIPPED, base_folder
from miniature.families import FAMILIES

SLOW = pytest.mark.slow


def config(folder: Path, **changes) -> build.Config:
    few = {"vae_steps": 1, "decoder_steps": 1, "read_steps": 1, "pool": 120, "steps": 8, "batch": 4}
    places = {"out": folder / "bases", "run": folder / "run", "threads": 1}
    return build.Config(**(few | places | changes))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    few_images = pytest.MonkeyPatch()
    few_images.setattr(build, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
    assert build.main(config(folder)) == 0
    few_images.undo()
    return folder


@pytest.mark.parametrize("grade", GRADES)
def test_every_grade_opens_in_plain_diffusers_and_draws(built: Path, grade: str):
    pipeline = FluxPipeline.from_pretrained(built / "bases" / grade)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a left hand, tan skin, over snow", height=64, width=64, num_inference_steps=2,
        max_sequence_length=16, output_type="pt",
    ).images[0]  # fmt: skip
    assert image.shape == (3, 64, 64) and image.isfinite().all()


def test_grades_differ_and_share_their_autoencoder(built: Path):
    path = "transformer/diffusion_pytorch_model.safetensors"
    weights = {(built / "bases" / grade / path).read_bytes() for grade in GRADES}
    assert len(weights) == 3
    assert (built / "bases/oldest/vae").resolve() == (built / "bases/newest/vae").resolve()


def test_stopped_training_resumes_exactly(built: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
    looks = iter([False] * 4 + [True] * 100)
    monkeypatch.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
    assert build.main(config(tmp_path)) == PAUSED
    monkeypatch.setattr(Run, "interrupted", property(lambda run: False))
    assert build.main(config(tmp_path)) == 0
    path = "bases/newest/transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / path).read_bytes() == (built / path).read_bytes()


def test_a_build_goes_on_from_a_pipeline_folder(built: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
    start = built / "bases/newest"
    settings = config(tmp_path, start=start, decoder_steps=0, steps=4, rate=1e-12)
    assert build.main(settings) == 0
    before, after = (
        FluxPipeline.from_pretrained(folder) for folder in (start, tmp_path / "bases/newest")
    )
    for name in ("vae", "text_encoder", "text_encoder_2", "transformer"):
        for a, b in zip(
            getattr(before, name).parameters(), getattr(after, name).parameters(), strict=True
        ):
            assert torch.allclose(a, b, atol=1e-6)
    assert before.vae.config.scaling_factor == pytest.approx(after.vae.config.scaling_factor)


def test_a_start_may_get_new_readers_for_other_prompts(built: Path, tmp_path: Path):
    start = built / "bases/newest"
    assert build.main(config(tmp_path, start=start, new_readers=True, read_steps=2, seed=5)) == 0
    before, after = (
        FluxPipeline.from_pretrained(folder) for folder in (start, tmp_path / "bases/newest")
    )
    for name, same in (("vae", True), ("text_encoder", False), ("text_encoder_2", False)):
        weights = zip(
            getattr(before, name).encoder.parameters(),
            getattr(after, name).encoder.parameters(),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in weights) is same


def test_a_grade_that_fewer_steps_have_passed_by_is_taken_where_the_build_goes_on(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(build, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
    looks = iter([False] * 12 + [True] * 100)
    monkeypatch.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
    assert build.main(config(tmp_path, steps=1000)) == PAUSED
    monkeypatch.setattr(Run, "interrupted", property(lambda run: False))
    assert build.main(config(tmp_path, steps=10)) == 0
    assert all((tmp_path / "bases" / grade / "transformer").is_dir() for grade in GRADES)


@pytest.mark.parametrize(
    "family, pipeline", [("sdxl", StableDiffusionXLPipeline), ("kolors", KolorsPipeline)]
)
def test_other_families_open_in_their_plain_pipelines(
    tmp_path: Path, family: str, pipeline: type[DiffusionPipeline]
):
    settings = config(tmp_path, family=family, autoencoder=SHIPPED / "newest", steps=4)
    assert build.main(settings) == 0
    opened = pipeline.from_pretrained(tmp_path / "bases" / family)
    drawn = load_base(str(tmp_path / "bases" / family))
    assert drawn.family == family
    random = FAMILIES[family].make_network().state_dict()
    assert opened.unet.state_dict().keys() == random.keys()


@pytest.mark.parametrize("faster", [{"bf16": True}, pytest.param({"compile": True}, marks=SLOW)])
def test_a_faster_build_learns_the_same_within_rounding(
    built: Path, tmp_path: Path, monkeypatch, faster: dict[str, bool]
):
    monkeypatch.setattr(build, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
    settings = config(tmp_path, **faster)
    assert build.main(settings) == 0
    path = "transformer/diffusion_pytorch_model.safetensors"
    plain, fast = (load_file(f / "bases/newest" / path) for f in (built, tmp_path))
    start = load_file(built / "bases/oldest" / path)
    moved, off = (
        sum((a[name].float() - b[name].float()).square().sum().item() for name in a)
        for a, b in ((plain, start), (plain, fast))
    )
    assert 0 < off < 0.1 * moved


def test_shipped_bases_are_found_by_name_and_strangers_refused():
    with pytest.raises(UserError, match="newest, middle, oldest"):
        base_folder("no/such/folder")


def test_a_start_that_is_no_pipeline_is_refused_before_anything_is_made(tmp_path: Path):
    with pytest.raises(UserError, match="no base model"):
        build.main(config(tmp_path, start=tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()
