"""Flaw highlighters: Grad-CAM against its definition, training that learns, folders that reload."""

import json
import shutil

import jaxtyping
import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from core import checkpoint
from core.errors import UserError
from core.images import write_image
from core.run import Run
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.wishes import ask
from detector import diagnose, evaluate, train_highlighter
from detector.flaw_map import FlawMap, Highlighter, HighlighterConfig, load_pretrained
from detector.segformer import freeze
from detector.storage import (
    load_detector,
    load_highlighter,
    open_detector,
    read_description,
    save_highlighter,
)
from detector.train_highlighter import Config

SIDE, SPOT = 32, 8
CHANCE = SPOT**2 / SIDE**2 / 2
"""Pixel AP of a map that knows nothing: the share of marked pixels, in half of the images."""
TINY = "test_resnet"


def highlighter(**changes) -> Highlighter:
    return Highlighter(HighlighterConfig(**{"variant": TINY, "hidden": 8, **changes})).eval()


def images(n=3, seed=0):
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def test_the_map_is_grad_cam_of_generated():
    network = highlighter(variant="vgg11")
    kept = {}
    network.trunk.register_forward_hook(lambda *given: kept.update(cells=given[2]))
    logit = network(images()[:1])
    (slope,) = torch.autograd.grad(-logit, kept["cells"])
    cells, slope = kept["cells"].detach()[0], slope[0]
    weighed = [slope[k].mean() * cells[k] for k in range(len(cells))]
    found = torch.stack(weighed).sum(0).clamp_min(0)
    wanted = F.interpolate((found / found.max())[None, None], size=(SIDE, SIDE), mode="bilinear")
    maps = FlawMap(network).flaw_maps(images()[:1])
    torch.testing.assert_close(maps, wanted)
    assert maps.amax() == pytest.approx(1, abs=0.3) and maps.amin() >= 0


def test_an_images_map_is_its_own():
    detector = FlawMap(highlighter())
    whole = detector.flaw_maps(images())
    alone = torch.cat([detector.flaw_maps(image[None]) for image in images()])
    torch.testing.assert_close(whole, alone)
    real = torch.sigmoid(detector.highlighter(images()))
    torch.testing.assert_close(detector(images()), whole * (1 - real)[:, None, None, None])


def test_what_cannot_be_images_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    for given in (images().byte(), images()[0], images()[:, :1]):
        with pytest.raises(UserError, match="a detector takes float images"):
            FlawMap(highlighter())(given)


def test_the_gradient_reaches_images_and_no_weight():
    detector = freeze(FlawMap(highlighter().double()))
    learnt = images(1).double().requires_grad_()
    detector(learnt).square().mean().backward()
    assert learnt.grad is not None and learnt.grad.abs().max() > 0
    assert all(weight.grad is None for weight in detector.parameters())
    step = 1e-6 * learnt.grad / learnt.grad.norm()
    with torch.no_grad():
        up, down = (detector(learnt + way * step).square().mean() for way in (1, -1))
    slope = (up - down) / 2e-6
    assert slope.item() == pytest.approx(learnt.grad.norm().item(), rel=1e-2)
    assert not detector(images()).requires_grad


def test_a_folder_gives_the_same_maps_and_is_no_segformer(tmp_path):
    made = highlighter(side=48)
    save_highlighter(made, tmp_path / "h", {"seed": 0})
    again = open_detector(tmp_path / "h")
    torch.testing.assert_close(again(images()), FlawMap(made)(images()), rtol=0, atol=0)
    assert load_highlighter(tmp_path / "h").config.side == 48
    with pytest.raises(UserError, match="train-highlighter"):
        load_highlighter(tmp_path / "none")
    with pytest.raises(UserError, match="SegFormer is needed"):
        load_detector(tmp_path / "h")
    payload = (tmp_path / "h/detector.safetensors").read_bytes()
    (tmp_path / "h/detector.safetensors").write_bytes(payload[:-1] + b"x")
    with pytest.raises(UserError, match="damaged"):
        open_detector(tmp_path / "h")


def test_published_weights_of_a_vgg_are_taken(tmp_path):
    with torch.device("meta"):  # its classifier alone has 124 million weights
        theirs = torchvision.models.vgg11(weights=None)
        theirs.classifier = torch.nn.Sequential(torch.nn.Linear(2, 2))
    for weights in theirs.to_empty(device="cpu").parameters():
        torch.nn.init.normal_(weights)
    torch.save(theirs.state_dict(), tmp_path / "vgg11.pth")
    network = highlighter(variant="vgg11")
    load_pretrained(network, tmp_path / "vgg11.pth")
    taken = network.trunk.state_dict()
    wanted = theirs.features.state_dict()
    assert all(torch.equal(taken[name], tensor) for name, tensor in wanted.items())
    with pytest.raises(UserError, match="holds no weights of test_resnet"):
        load_pretrained(highlighter(), tmp_path / "vgg11.pth")


@pytest.mark.parametrize("name", ["vgg_16", "test_vit", "vit_tiny_patch16_224"])
def test_networks_without_a_last_convolution_are_refused(name):
    with pytest.raises(UserError, match="did you mean 'vgg16'|convolutional"):
        highlighter(variant=name)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return store(tmp_path_factory.mktemp("data") / "store")


def store(folder, seed=0, n=240, real_side=SIDE):
    """Noise is real; generated noise has a bright square somewhere."""
    rng = np.random.default_rng(seed)
    with ShardWriter(folder) as writer:
        for i in range(n):
            generated, side = i % 2 == 1, SIDE if i % 2 else real_side
            pixels = rng.integers(0, 128, (side, side, 3), np.uint8)
            mask = np.zeros((side, side), np.uint8)
            if generated:
                y, x = rng.integers(0, SIDE - SPOT, 2)
                pixels[y : y + SPOT, x : x + SPOT] = 255
                mask[y : y + SPOT, x : x + SPOT] = 255
            source = "human" if generated else "real"
            record = Record(key=f"{i:03d}", source=source, prompt=f"number {i}")
            writer.write(Sample(record.key, pixels, mask, record))
    return folder


def settings(data, out, **changes) -> Config:
    few = {"variant": TINY, "hidden": 16, "steps": 60, "batch": 16, "learning_rate": 3e-3}
    few |= {"side": 64, "warmup": 5, "valid_every": 60, "checkpoint_every": 20}
    return Config.model_validate({"data": (data,), "out": out, **few, **changes})


def test_it_learns_what_sets_the_generated_apart_and_points_at_it(data, tmp_path, monkeypatch):
    measured, measure = [], train_highlighter.measure
    monkeypatch.setattr(
        train_highlighter, "measure", lambda *given: measured.append(given[-1]) or measure(*given)
    )
    assert train_highlighter.main(settings(data, tmp_path / "run", valid_every=30)) is None
    assert measured == [30, 60]  # the last once: it is what the card says
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["valid/balanced"] > 0.9
    assert (tmp_path / "run/pictures/step-00000060.png").is_file()
    figures = tmp_path / "figures.json"
    given = {"detector": tmp_path / "run", "data": (data,), "json_file": figures}
    evaluate.main(evaluate.Config.model_validate(given))
    found = json.loads(figures.read_text())["overall"]["all"]
    assert found["pixel_ap"] > 4 * CHANCE


def test_other_data_under_the_same_name_is_refused(tmp_path):
    given = settings(store(tmp_path / "data", n=40), tmp_path / "run", steps=1)
    train_highlighter.main(given)
    shutil.rmtree(tmp_path / "data")
    store(tmp_path / "data", seed=1, n=40)
    with pytest.raises(UserError, match="other contents of --data than lie there now"):
        train_highlighter.main(given)
    shutil.rmtree(tmp_path / "data")
    store(tmp_path / "data", n=40)
    train_highlighter.main(given)  # control: what was is back


def test_images_of_two_sizes_are_refused_before_the_run_folder_is_begun(tmp_path):
    data = store(tmp_path / "data", n=40, real_side=SIDE + 8)
    with pytest.raises(UserError, match="2 sizes; give one with --size"):
        train_highlighter.main(settings(data, tmp_path / "run", steps=1))
    assert not (tmp_path / "run").exists()
    train_highlighter.main(settings(data, tmp_path / "run", steps=1, size=SIDE))


def test_a_stopped_run_goes_on_to_the_bit(data, tmp_path, monkeypatch):
    train_highlighter.main(settings(data, tmp_path / "whole", steps=8, checkpoint_every=4))
    halfway = settings(data, tmp_path / "parts", steps=8, checkpoint_every=4)
    learn = train_highlighter.learn

    def broken(learner, kinds, config, step):
        if step == 6:
            raise KeyboardInterrupt
        return learn(learner, kinds, config, step)

    monkeypatch.setattr(train_highlighter, "learn", broken)
    with pytest.raises(KeyboardInterrupt):
        train_highlighter.main(halfway)
    monkeypatch.setattr(train_highlighter, "learn", learn)
    train_highlighter.main(halfway)
    whole, parts = (
        (tmp_path / name / "detector/detector.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert whole == parts


def test_asked_for_a_sheet_and_a_checkpoint_it_computes_the_same(data, tmp_path, monkeypatch):
    few = {"steps": 5, "valid_every": 3, "checkpoint_every": 100}
    train_highlighter.main(settings(data, tmp_path / "whole", **few))
    held, log = [], Run.log

    def logged(run, step, **figures):
        log(run, step, **figures)
        held.append(checkpoint.steps(run.checkpoints))
        if step in (1, 4):
            assert all(ask(run.folder, wish) for wish in ("sample", "save"))

    monkeypatch.setattr(Run, "log", logged)
    train_highlighter.main(settings(data, tmp_path / "run", **few))
    whole, run = (
        (tmp_path / name / "detector/detector.safetensors").read_bytes()
        for name in ("whole", "run")
    )
    assert whole == run
    drawn = [int(path.stem[5:]) for path in sorted((tmp_path / "run/pictures").iterdir())]
    assert drawn == [2, 3, 5] and held == [[], [], [2], [2], [2]]  # 3 and 5 were due
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(10e6 < line["host_memory"] < 1e12 for line in lines)


def test_one_kind_alone_teaches_nothing(data, tmp_path):
    (tmp_path / "real").mkdir()
    for i in range(30):
        write_image(tmp_path / f"real/{i}.png", images(1, i)[0])
    with pytest.raises(UserError, match="no generated image teaches"):
        train_highlighter.main(settings(tmp_path, tmp_path / "run"))


def test_no_mask_is_needed(tmp_path):
    for kind, first in (("real", 0), ("images", 100)):
        (tmp_path / kind).mkdir()
        for i in range(first, first + 30):
            write_image(tmp_path / f"{kind}/{i}.png", images(1, i)[0])
    few = {"steps": 1, "batch": 2, "valid_share": 0.3, "valid_limit": 4}
    assert train_highlighter.main(settings(tmp_path, tmp_path / "run", **few)) is None
    card = read_description(tmp_path / "run").card
    assert min(card["samples"].values()) > 10 and sum(card["samples"].values()) < 60


def test_a_flaw_map_diagnoses(data, tmp_path):
    save_highlighter(highlighter(), tmp_path / "h", {})
    write_image(tmp_path / "image.png", images(1)[0])
    given = {"images": tmp_path / "image.png", "detector": tmp_path / "h", "out": tmp_path / "out"}
    assert not diagnose.main(diagnose.Config.model_validate(given))
