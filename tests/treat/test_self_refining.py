"""Self-refining training: the two uses of a map by their formulas, the loop, what it leaves."""

import json
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from pydantic import ValidationError
from safetensors.torch import load_file

from base_models import unet
from base_models.load import load_base
from base_models.sample import sample
from base_models.samplers import StepSampler
from core import checkpoint
from core import seeds as seeding
from core.errors import UserError
from core.images import write_image
from core.run import Run
from core.wishes import ask
from detector.flaw_map import Highlighter, HighlighterConfig
from detector.storage import save_highlighter
from tests.base_models.families import CASES
from tests.chain import inputs
from tests.tiny import SIZE
from tests.tiny.unconditional import ddpm, tiny_ddpm, tiny_ldm
from treat.self_refining import train
from treat.self_refining.attention import Flaws, Louder, attentions, grid, unwrap, wrap
from treat.self_refining.noise import amplified
from treat.self_refining.train import Config, finest

SEEING = 0
"""Seed of an untrained highlighter whose map of noise is not zero everywhere."""
MAP = torch.linspace(0, 1, SIZE * SIZE).view(1, 1, SIZE, SIZE)


@pytest.mark.parametrize(
    ("variant", "seen", "asked"),
    [
        ("paper", lambda e, m: e + 0.5 * m, lambda e, m: e + 0.5 * m),
        ("input", lambda e, m: e * (1 + 0.5 * m), lambda e, m: e),
        ("target", lambda e, m: e, lambda e, m: e + 0.5 * m),
        ("centred", *2 * (lambda e, m: e + 0.5 * (m - 0.5),)),
    ],
)
def test_noise_is_amplified_as_the_paper_or_a_release_has_it(variant, seen, asked):
    noise = torch.randn(2, 3, SIZE, SIZE)
    found = amplified(noise, MAP, 0.5, variant)
    torch.testing.assert_close(found[0], seen(noise, MAP))
    torch.testing.assert_close(found[1], asked(noise, MAP))
    assert all(torch.equal(one, noise) for one in amplified(noise, 0 * MAP, 0.5, variant))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_takes_one_noise_in_and_asks_for_the_other(prediction):
    sampler = StepSampler(ddpm(prediction_type=prediction))
    clean, shown = torch.rand(1, 3, 4, 4), {}

    def predict(x, t):
        shown.update(x=x, t=t)
        return torch.zeros_like(x)

    loss = sampler.loss(predict, clean, [5], lambda noise: (noise + 1, noise + 2))
    drawn = seeding.generator(5)
    t = torch.randint(1000, (1,), generator=drawn)
    noise, abar = torch.randn(1, 3, 4, 4, generator=drawn), sampler.scheduler.alphas_cumprod[t]
    signal, rest = abar.sqrt(), (1 - abar).sqrt()
    torch.testing.assert_close(shown["x"], signal * clean + rest * (noise + 1))
    asked = noise + 2 if prediction == "epsilon" else signal * (noise + 2) - rest * clean
    torch.testing.assert_close(loss, asked.square().mean())


def keep(kept, name):
    """A hook that keeps a layer's input and output."""

    def hook(layer, given, made):
        kept[name] = given[0], made

    return hook


def test_keys_and_values_are_louder_and_queries_are_not():
    network, kept = tiny_ddpm().unet, {}
    flaws = Flaws("resize", (SIZE, SIZE))
    plain = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    x, t = torch.randn(1, 3, SIZE, SIZE), torch.tensor(10)
    with torch.no_grad():
        before = network(x, t).sample
        assert wrap(network, flaws, 0.5) > 0
        assert torch.equal(network(x, t).sample, before)  # no map yet
        flaws.map = torch.zeros_like(MAP)
        assert torch.equal(network(x, t).sample, before)
        flaws.map = MAP
        attention = network.down_blocks[1].attentions[0]
        for name in ("to_q", "to_k", "to_v"):
            getattr(attention, name).register_forward_hook(keep(kept, name))
        assert not torch.equal(network(x, t).sample, before)
    half = torch.nn.functional.interpolate(MAP, scale_factor=0.5, mode="bilinear", antialias=True)
    louder = 1 + 0.5 * half.flatten()[None, :, None]
    for name, factor in (("to_q", 1), ("to_k", louder), ("to_v", louder)):
        tokens, made = kept[name]
        layer = getattr(attention, name)
        torch.testing.assert_close(made, getattr(layer, "layer", layer)(tokens) * factor)
    unwrap(network)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == plain


@pytest.mark.parametrize("case", ["flux", "sdxl", "sd3"])
def test_other_networks_hear_the_map_too(case):
    model = CASES[case].model()
    noise, schedule, text = inputs(model, 2, SIZE)
    flaws = Flaws("resize", finest(model, SIZE, SIZE))
    with torch.no_grad():
        before = model.step(noise, 0, schedule, text)
        wrap(model.network, flaws, 0.5)
        flaws.map = MAP
        louder = model.step(noise, 0, schedule, text)
        unwrap(model.network)
        assert torch.equal(model.step(noise, 0, schedule, text), before)
    assert not torch.allclose(louder, before)


@pytest.mark.parametrize(("case", "axis"), [("flux", 1), ("sd3", 2)])
def test_a_norm_of_the_keys_does_not_make_them_plain_again(case, axis):
    model, kept = CASES[case].model(), {}
    noise, schedule, text = inputs(model, 2, SIZE)
    flaws = Flaws("resize", finest(model, SIZE, SIZE))
    attention = next(attentions(model.network))
    with torch.no_grad():
        hook = attention.norm_k.register_forward_hook(keep(kept, "plain"))
        model.step(noise, 0, schedule, text)
        hook.remove()
        wrap(model.network, flaws, 0.5)
        flaws.map = MAP
        attention.norm_k.register_forward_hook(keep(kept, "louder"))
        model.step(noise, 0, schedule, text)
    plain, louder = (kept[name][1].movedim(axis, -1) for name in ("plain", "louder"))
    torch.testing.assert_close(louder, plain * (1 + 0.5 * said(flaws, plain.shape[-1])))


def test_a_small_lambda_survives_bf16():
    flaws = Flaws("resize", (4, 4))
    flaws.map = torch.full((1, 1, 4, 4), 0.1)
    louder = Louder(torch.nn.Identity(), flaws, 0.025, axis=1)
    tokens = torch.rand(1, 16, 4096).bfloat16() + 1
    assert (louder(tokens).float().mean() / tokens.float().mean()).item() == pytest.approx(
        1.0025, abs=5e-4
    )


def said(flaws, n):
    found = flaws.tokens(n)
    assert found is not None
    return found[0, :, 0]


def test_tokens_that_are_no_place_have_zero():
    flaws = Flaws("resize", (4, 4))
    assert flaws.tokens(21) is None
    flaws.map = torch.ones(1, 1, SIZE, SIZE)
    assert said(flaws, 21).tolist() == [0] * 5 + [1] * 16
    assert said(flaws, 4).tolist() == [1] * 4
    learned = Flaws("learned", (4, 4))
    learned.map = flaws.map
    said(learned, 16).sum().backward()
    assert all(weight.grad is not None for weight in learned.parameters())


def halvings(y, x, odd):
    while y * x > 1:
        yield y, x
        y, x = max(1, (y + odd) // 2), max(1, (x + odd) // 2)


def test_odd_sides_are_halved_as_the_network_does():
    assert grid(12, 5, 7) == (3, 4) and grid(6, 5, 7) == (2, 3) and grid(40, 5, 7) == (5, 7)
    for y in range(1, 40):
        for x in range(1, 40):
            assert all(grid(h * w, y, x) == (h, w) for h, w in halvings(y, x, 1))
    with pytest.raises(UserError, match="13 tokens, which no halving of 5x7"):
        grid(13, 5, 7)


@pytest.mark.parametrize("case", ["sdxl", "sd", "kolors"])
def test_the_map_lies_on_odd_latents_as_the_image_does(case, monkeypatch):
    """As they are at the deepest level of a base that halves three times."""
    monkeypatch.setattr(unet, "check_sides", lambda *sides: None)
    model: Any = CASES[case].model()
    seen: list[tuple[int, int]] = []
    cell = SIZE // model.noise([0], SIZE, SIZE).shape[-1]
    height, width = 7 * cell, 5 * cell
    noise, schedule = model.noise([0], height, width), model.schedule(2, height, width)
    text = model.encode_prompts(["a hand"])
    for module in model.network.modules():
        if isinstance(module, Transformer2DModel):
            module.register_forward_pre_hook(lambda layer, given: seen.append(given[0].shape[-2:]))
    with torch.no_grad():
        model.step(noise, 0, schedule, text)
    assert any(side % 2 for pair in seen for side in pair)
    assert all(grid(y * x, *finest(model, height, width)) == (y, x) for y, x in seen)


@pytest.fixture
def world(tmp_path):
    """A base that draws pixels, real images without captions, a highlighter."""
    tiny_ddpm().save_pretrained(tmp_path / "base")
    (tmp_path / "real").mkdir()
    for i in range(6):
        image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(i))
        write_image(tmp_path / f"real/{i}.png", image)
    shape = HighlighterConfig(variant="test_resnet", side=128, hidden=4)
    save_highlighter(Highlighter(shape, SEEING), tmp_path / "highlighter", {})
    return tmp_path


def settings(world, name, **changes) -> Config:
    given = {
        "base": str(world / "base"),
        "data": world / "real",
        "highlighter": world / "highlighter",
        "out": world / name,
        "height": SIZE,
        "width": SIZE,
        "steps": 6,
        "cycle": 2,
        "batch": 2,
        "map_images": 3,
        "map_steps": 2,
        "ema": 0.5,
        "checkpoint_every": 2,
    }
    return Config.model_validate({**given, **changes})


def weights(run):
    return load_file(run / "pipeline/unet/diffusion_pytorch_model.safetensors")


def test_a_run_refines_and_leaves_a_plain_pipeline(world):
    assert train.main(settings(world, "run")) is None
    assert sorted(path.stem for path in (world / "run/pictures").iterdir()) == [
        "step-00000003",
        "step-00000005",
    ]
    theirs = load_file(world / "base/unet/diffusion_pytorch_model.safetensors")
    assert {n: t.shape for n, t in weights(world / "run").items()} == {
        n: t.shape for n, t in theirs.items()
    }
    pipeline: Any = DDPMPipeline.from_pretrained(world / "run/pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(num_inference_steps=2).images) == 1
    model = load_base(str(world / "run/pipeline"))
    assert sample(model, ["any"], [0], steps=2, height=SIZE, width=SIZE).shape[0] == 1
    lines = [json.loads(line) for line in (world / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(line["loss"] > 0 for line in lines)


def test_the_map_matters_only_in_the_second_phase(world):
    train.main(settings(world, "refined"))
    train.main(settings(world, "control", refine_share=0, highlighter=None))
    train.main(settings(world, "half", steps=3, refine_share=0, highlighter=None))

    def losses(name):
        text = (world / name / "metrics.jsonl").read_text()
        return [json.loads(line)["loss"] for line in text.splitlines()]

    assert losses("refined")[:3] == losses("control")[:3] == losses("half")
    assert losses("refined")[3:] != losses("control")[3:]


@pytest.mark.parametrize("embedding", ["resize", "learned"])
def test_a_stopped_run_goes_on_to_the_bit(world, monkeypatch, embedding):
    train.main(settings(world, "whole", embedding=embedding))
    learn = train.learn

    def broken(config, model, learner, rows, step):
        if step == 5:
            raise KeyboardInterrupt
        return learn(config, model, learner, rows, step)

    monkeypatch.setattr(train, "learn", broken)
    with pytest.raises(KeyboardInterrupt):
        train.main(settings(world, "parts", embedding=embedding))
    monkeypatch.setattr(train, "learn", learn)
    train.main(settings(world, "parts", embedding=embedding))
    whole, parts = weights(world / "whole"), weights(world / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_other_inputs_under_the_same_names_are_refused(world):
    def image(seed):
        drawn = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        write_image(world / "real/0.png", drawn)

    def highlighter(seed):
        shape = HighlighterConfig(variant="test_resnet", side=128, hidden=4)
        save_highlighter(Highlighter(shape, seed), world / "highlighter", {})

    given = settings(world, "run", steps=2)
    train.main(given)
    for change, former, option in ((image, 0, "--data"), (highlighter, SEEING, "--highlighter")):
        change(9)
        with pytest.raises(UserError, match=f"other contents of {option} than lie there now"):
            train.main(given)
        change(former)
    train.main(given)  # control: what was is back


def test_asked_for_images_and_a_checkpoint_it_computes_the_same(world, monkeypatch):
    train.main(settings(world, "whole", checkpoint_every=100, cycle=3))
    held, log = [], Run.log

    def logged(run, step, **figures):
        log(run, step, **figures)
        held.append(checkpoint.steps(run.checkpoints))
        if step in (1, 4):  # before there is a map, and under one
            assert all(ask(run.folder, wish) for wish in ("sample", "save"))

    monkeypatch.setattr(Run, "log", logged)
    train.main(settings(world, "run", checkpoint_every=100, cycle=3))
    whole, run = weights(world / "whole"), weights(world / "run")
    assert all(torch.equal(whole[name], run[name]) for name in whole)
    drawn = [int(path.stem[5:]) for path in sorted((world / "run/pictures").iterdir())]
    assert drawn == [2, 3, 5]  # 3 is the map's
    assert held == [[], [], [2], [2], [2], [2, 5]]
    lines = [json.loads(line) for line in (world / "run/metrics.jsonl").read_text().splitlines()]
    assert all(10e6 < line["host_memory"] < 1e12 for line in lines)


def test_latents_take_the_reverse_part_alone(world):
    tiny_ldm().save_pretrained(world / "base")
    with pytest.raises(UserError, match="forward_weight to 0"):
        train.main(settings(world, "refused"))
    assert not (world / "refused").exists()  # so that the same --out may be asked for again
    train.main(settings(world, "run", forward_weight=0))
    assert (world / "run/pipeline/vqvae/config.json").is_file()


def test_a_base_that_reads_text_needs_captions_before_a_run_begins(world):
    CASES["sdxl"].pipeline().save_pretrained(world / "text")
    with pytest.raises(UserError, match="has no caption"):
        train.main(settings(world, "run", base=str(world / "text"), forward_weight=0))
    assert not (world / "run").exists()


def test_refining_needs_a_highlighter(world):
    with pytest.raises(ValidationError, match="train-highlighter"):
        settings(world, "run", highlighter=None)
