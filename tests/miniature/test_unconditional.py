"""The miniature's DDPM and LDM: built, opened by plain diffusers, trained on what they draw."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from base_models.load import load_base
from base_models.sample import sample
from core.errors import UserError
from core.run import PAUSED, Run
from miniature import build, stages
from miniature.families import FAMILIES
from miniature.law import SIZE

WEIGHTS = "diffusion_pytorch_model.safetensors"


def config(folder: Path, family: Any, **changes: Any) -> build.Config:
    few = {"pool": 100, "steps": 4, "batch": 1, "threads": 1}
    start = {"autoencoder": Path("newest")} if family == "ldm" else {}
    return build.Config(
        family=family, out=folder / "bases", run=folder / "run", **(few | start | changes)
    )


@pytest.fixture(scope="module", params=["ddpm", "ldm"])
def built(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "bases").mkdir()
    (folder / "bases/newest").symlink_to(Path(build.__file__).parent / "bases/newest")
    assert build.main(config(folder, request.param)) == 0
    return folder / "bases" / request.param


def test_a_built_base_opens_in_its_plain_pipeline_and_draws_what_ours_draws(built: Path):
    pipeline: Any = DiffusionPipeline.from_pretrained(built)
    assert type(pipeline).__name__ == FAMILIES[built.name].pipeline
    if built.name == "ddpm":  # its own sampler adds noise at every step
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    theirs = pipeline(2, generators, num_inference_steps=3, output_type="np").images
    model = load_base(str(built))
    ours = sample(model, ["", ""], [3, 4], steps=3, height=SIZE, width=SIZE)
    assert model.family == built.name
    # Ours is rounded to 8 bits.
    assert (ours - torch.from_numpy(theirs).permute(0, 3, 1, 2)).abs().max() <= 0.5 / 255 + 1e-5


def test_a_folder_is_small_and_an_ldm_shares_the_autoencoder(built: Path):
    assert (built / "unet" / WEIGHTS).stat().st_size < 10e6
    if built.name == "ldm":
        vae = built / "vqvae" / WEIGHTS
        assert vae.is_symlink() and not vae.readlink().is_absolute()
    for path in built.rglob("*.json"):
        assert str(built.parent) not in path.read_text()


@pytest.mark.parametrize("family", ["ddpm", "ldm"])
def test_loss_is_that_of_the_noise_at_the_pipelines_own_levels(family: str):
    own = FAMILIES[family]
    shape = (8, 3, SIZE, SIZE) if own.pixels else (8, 12, 16, 16)
    clean = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    asked = []

    class Perfect(torch.nn.Module):
        """Knows the images, but for `off`, and so the noise."""

        def __init__(self, off: float) -> None:
            super().__init__()
            self.off = off

        def forward(self, x, t, return_dict):
            asked.append(t)
            abar = own.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
            return ((x - abar.sqrt() * (clean + self.off)) / (1 - abar).sqrt(),)

    def loss(off: float) -> torch.Tensor:
        return own.loss(Perfect(off), clean, {}, torch.Generator().manual_seed(5))

    assert loss(0.0) < 1e-4
    abar = own.scheduler.alphas_cumprod[asked[0]]
    expected = (0.01 * abar / (1 - abar)).mean()
    torch.testing.assert_close(loss(0.1), expected, rtol=1e-2, atol=1e-4)
    assert expected > 1e-3  # control
    assert (asked[0] * 8 // 1000).tolist() == list(range(8))  # a time in each eighth


def test_a_ddpm_learns_pixels_between_minus_one_and_one(tmp_path: Path):
    settings = config(tmp_path, "ddpm")
    with Run.start(settings, settings.run, "build") as run:
        pool = stages.stage_pool(run, settings, None)
    assert pool["latents"].dtype == torch.uint8 and pool["latents"].shape[1:] == (3, SIZE, SIZE)
    levels = (pool["latents"].float() - pool["mean"]) / pool["std"]
    assert levels.min() >= -1 and levels.max() <= 1 and levels.std() > 0.3
    assert FAMILIES["ddpm"].shifted  # so that the network is shown these


def test_a_stopped_build_goes_on_exactly(built: Path, tmp_path: Path, monkeypatch):
    looks = iter([False] * 12 + [True] * 100)
    monkeypatch.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
    stopped = config(tmp_path, built.name, checkpoint_every=2)
    assert build.main(stopped) == PAUSED
    monkeypatch.setattr(Run, "interrupted", property(lambda run: False))
    assert build.main(stopped) == 0
    path = f"bases/{built.name}/unet/{WEIGHTS}"
    assert (tmp_path / path).read_bytes() == (built / "unet" / WEIGHTS).read_bytes()


def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path: Path):
    for family, given, says in (
        ("ddpm", {"autoencoder": Path("newest")}, "draws pixels: leave --autoencoder out"),
        ("ldm", {"kin": Path("sdxl")}, "no kin of ldm"),
        ("ddpm", {"start": Path("sdxl")}, "is a StableDiffusionXLPipeline, no ddpm"),
    ):
        with pytest.raises(UserError, match=says):
            build.main(config(tmp_path, family, **given))
    assert not (tmp_path / "run").exists()


def test_a_build_goes_on_from_one_of_its_family(built: Path, tmp_path: Path):
    changes = {"autoencoder": None} if built.name == "ldm" else {}
    settings = config(tmp_path, built.name, start=built, rate=1e-12, **changes)
    assert build.main(settings) == 0
    before, after = (load_base(str(f)) for f in (built, tmp_path / "bases" / built.name))
    for a, b in zip(before.network.parameters(), after.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert torch.equal(*(m.encode(torch.zeros(1, 3, SIZE, SIZE)) for m in (before, after)))
