"""What METHODS names of ASCED's and self-refining diffusion's code and baselines, as far as it has
no test beside its own piece (`test_correctors`, `test_self_refining`, `test_score_dynamics`)."""

import math

import pytest
import torch
from torch.nn import functional as F

from core import checkpoint
from core.images import write_image
from detector import train_highlighter
from detector.flaw_map import FlawMap, Highlighter, HighlighterConfig
from detector.learning import Learner
from detector.score_dynamics import Window, grown
from detector.segformer import IMAGENET_MEAN, IMAGENET_STD
from detector.sources import Chosen
from detector.storage import load_highlighter, save_highlighter
from tests.base_models.families import EVERY
from tests.detector.toy import toy_samples
from tests.tiny import SIZE
from tests.tiny.unconditional import tiny_ddpm, tiny_ldm
from treat.correctors import defaults
from treat.correctors.guided import PalTtc
from treat.correctors.sampling import draw_corrected
from treat.self_refining import train
from treat.self_refining.attention import Flaws
from treat.step import Chain

STEPS, AT, SEEDS = 10, 5, [3, 4]
SEEING = 2
"""Seed of an untrained highlighter that sees something in what either tiny base draws."""


# ASCED and its baselines


@pytest.mark.parametrize(("side", "radius"), [(256, 5), (512, 10), (64, 1)])
def test_the_codes_mask_grows_by_five_pixels_of_256(side, radius):
    maps = torch.zeros(1, 1, side, side)
    maps[0, 0, side // 2, side // 2] = 0.5
    maps[0, 0, 0, 0] = 0.49  # not found
    found = grown(maps)
    rows = torch.arange(side)
    near = (rows - side // 2).abs() <= radius
    assert torch.equal(found[0, 0] == 1, near[:, None] & near[None])


def test_it_is_corrected_at_twelve_of_25_steps():
    """T_c / T about .48: twelve steps are left to mend what was drawn anew."""
    window = Window()
    assert 25 - window.correction(25) == 12
    assert window.read(25)[-1] == window.correction(25) - 1


def test_bayesdiff_draws_ten_samples_every_fifth_step():
    known = defaults("bayes")
    assert (known["samples"], known["every"]) == (10, 5)


class Left(torch.nn.Module):
    """A segmentation detector that marks the left half of the brighter half of the images."""

    differentiable = True

    def forward(self, images):
        maps = torch.zeros_like(images[:, :1])
        maps[images.mean(dim=(1, 2, 3)).argmax(), ..., : images.shape[-1] // 2] = 0.7
        return maps


@pytest.mark.parametrize("name", ["ddpm", "ldm"])
def test_pal_and_ttc_is_the_detectors_mask_at_t_c_and_equation_6(name):
    """The mask from x0-hat decoded, not from the dynamics; noise and factor as ASCED's paper."""
    model = EVERY[name].model()
    chain = Chain(model, model.schedule(STEPS, SIZE, SIZE), model.encode_prompts(["a", "b"]))
    corrector, corrected = PalTtc(Left(), threshold=0.6, gamma=0.8), []

    def watched(moment):
        latents, mask = found = corrector(moment)
        if mask is None:
            return found
        corrected.append(moment.i)
        seen = Left()(moment.chain.decode(moment.clean).clamp(0, 1)) >= 0.6
        assert torch.equal(mask > 0, moment.cells(seen.float())) and 0 < mask.mean() < 0.5
        noised = model.noised(moment.clean, AT, chain.schedule, moment.noise(0))
        expected = noised * 0.8 * moment.noise(1)
        inside = (mask > 0).expand_as(latents)
        torch.testing.assert_close(latents[inside], expected[inside], rtol=1e-3, atol=1e-3)
        assert torch.equal(latents[~inside], moment.leaving[~inside])
        blind = PalTtc(Left(), threshold=0.8)(moment)  # control: above what the detector says
        assert torch.equal(blind.latents, moment.leaving)
        return found

    draw_corrected(chain, model.noise(SEEDS, SIZE, SIZE), SEEDS, watched)
    assert corrected == [AT - 1]


# Self-refining diffusion


def highlighter():
    shape = HighlighterConfig(variant="test_resnet", side=128, hidden=4)
    return Highlighter(shape, SEEING)


def test_the_highlighter_is_taught_and_asked_with_images_normalised_alike():
    """A release trains it on images as they are and asks with normalised ones."""
    network, shown = highlighter(), []
    network.trunk.register_forward_pre_hook(lambda _, given: shown.append(given[0].detach()))
    samples = Chosen(toy_samples(4), range(4))
    settings = train_highlighter.Config.model_validate({"data": (".",), "out": ".", "batch": 4})
    halves = [train_highlighter.drawn(samples, settings, 0) for _ in range(2)]
    train_highlighter.learn(Learner(network.train()), (samples, samples), settings, 0)
    images = torch.cat(halves)
    FlawMap(network.eval()).flaw_maps(images)
    side = F.interpolate(images, size=(128, 128), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    taught, asked = shown
    torch.testing.assert_close(taught, (side - mean) / std)
    torch.testing.assert_close(asked, taught)
    assert (side - taught).abs().max() > 1  # control: plain images are others


def generated_cam(network, images):
    """Grad-CAM of *generated* (0; real is 1) over its largest value, by its definition."""
    kept = {}
    hook = network.trunk.register_forward_hook(lambda *given: kept.update(cells=given[2]))
    maps = []
    for image in images:
        (slope,) = torch.autograd.grad(-network(image[None])[0], kept["cells"])
        cells = kept["cells"].detach()
        found = (slope.mean((2, 3), keepdim=True) * cells).sum(1, keepdim=True).clamp_min(0)
        found = found / found.max().clamp_min(1e-8)
        maps.append(F.interpolate(found, size=images.shape[-2:], mode="bilinear"))
    hook.remove()
    return torch.cat(maps)


@pytest.mark.parametrize(("kind", "forward"), [(tiny_ddpm, 0.01), (tiny_ldm, 0.0)])
def test_the_map_is_the_mean_of_one_batch_of_the_averaged_weights(
    tmp_path, monkeypatch, kind, forward
):
    """Of the class *generated*, of pixels and of latents alike: the latent branch of a release asks
    for the other one. Drawn plainly, without the map."""
    kind().save_pretrained(tmp_path / "base")
    save_highlighter(highlighter(), tmp_path / "highlighter", {})
    (tmp_path / "real").mkdir()
    for i in range(4):
        image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(i))
        write_image(tmp_path / f"real/{i}.png", image)
    drawn, heard, sample, tokens = [], [], train.sample, Flaws.tokens

    def kept(model, *given, **settings):
        heard.clear()
        weights = {name: t.detach().clone() for name, t in model.network.state_dict().items()}
        images = sample(model, *given, **settings)
        drawn.append((images, weights, list(heard)))
        return images

    monkeypatch.setattr(train, "sample", kept)
    monkeypatch.setattr(Flaws, "tokens", lambda self, n: heard.append(self.map) or tokens(self, n))
    settings = {
        "base": str(tmp_path / "base"),
        "data": tmp_path / "real",
        "highlighter": tmp_path / "highlighter",
        "out": tmp_path / "run",
        "height": SIZE,
        "width": SIZE,
        "steps": 4,
        "cycle": 1,
        "batch": 2,
        "map_images": 3,
        "map_steps": 2,
        "ema": 0.5,
        "checkpoint_every": 1,
        "forward_weight": forward,
        "learning_rate": 1e-2,
    }
    train.main(train.Config.model_validate(settings))
    assert [len(images) for images, _, _ in drawn] == [3, 3]  # after steps 2 and 3
    images, weights, maps = drawn[-1]
    before, later = (
        checkpoint._read(tmp_path / f"run/checkpoints/step-{step:08d}", step) for step in (3, 4)
    )
    mean = generated_cam(load_highlighter(tmp_path / "highlighter"), images).mean(0, keepdim=True)
    torch.testing.assert_close(later.tensors["flaws"]["map"], mean, atol=1e-4, rtol=1e-3)
    assert mean.max() > 0
    own, average = before.tensors["weights"], before.tensors["average"]
    assert all(torch.equal(t, average[f"network.{name}"]) for name, t in weights.items())
    assert any(not torch.equal(t, own[f"network.{name}"]) for name, t in weights.items())  # control
    assert maps and all(one is None for one in maps)


def test_the_learned_embedding_is_1_8_8_1():
    learned = Flaws("learned", (4, 4))
    shapes = [tuple(weight.shape[:2]) for weight in learned.parameters() if weight.ndim == 4]
    assert shapes == [(8, 1), (8, 8), (1, 8)]
    assert not list(Flaws("resize", (4, 4)).parameters())


def test_the_papers_numbers_are_the_defaults():
    known = train.Config.model_fields
    assert known["forward"].default == "paper"
    assert known["forward_weight"].default == 0.01 and known["reverse_weight"].default == 0.025
    assert known["cycle"].default == 100 and known["refine_share"].default == 0.5
    assert math.isclose(known["ema"].default, 0.9999)
