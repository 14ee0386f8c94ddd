"""The image reward against transformers' own CLIP; as a teacher, as a guard, and when it is bad."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

from core.errors import UserError
from tests.tiny.clip import SIDE, save_clip
from tests.treat.setting import build, config, losses
from treat import phases, train
from treat.image_reward import load_reward

PROMPTS = ["a hand", "a face, blue"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = build(tmp_path_factory.mktemp("world"))
    save_clip(folder / "clip")
    (folder / "prompts.txt").write_text("".join(f"a thing {i}\n" for i in range(100)))
    return folder


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def renamed(folder):
    """One weight under another name, which transformers would take for a missing one."""
    weights = load_file(folder / "model.safetensors")
    weights["projection.weight"] = weights.pop("text_projection.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_prompt_reads_the_same_whoever_asks_first(world):
    first, second = load_reward(world / "clip"), load_reward(world / "clip")
    with torch.autocast("cpu", torch.bfloat16):
        within = first.text("a hand")
        seen = first(pictures(32, 32), PROMPTS)
    assert torch.equal(within, second.text("a hand"))
    assert not torch.equal(seen, second(pictures(32, 32), PROMPTS))  # control: autocast acts


def pictures(height, width):
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(2, 3, 6, 6, generator=generator)
    smooth = F.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)
    return smooth.mul(255).round() / 255


@pytest.mark.parametrize("size", [(SIDE, SIDE), (40, 56), (64, 48)])
def test_score_and_pixels_are_those_of_transformers(world, size):
    images, processor = pictures(*size), CLIPProcessor.from_pretrained(world / "clip")
    files = [Image.fromarray(np.uint8(i.permute(1, 2, 0).numpy() * 255 + 0.5)) for i in images]
    length = {"padding": "max_length", "max_length": 24}
    given = processor(text=PROMPTS, images=files, return_tensors="pt", **length)
    reward = load_reward(world / "clip")
    # PIL rounds to 8 bits between the two directions and at the end.
    assert (reward.pixels(images) - given["pixel_values"]).abs().max() < 3 / 255 / 0.26
    with torch.no_grad():
        theirs = CLIPModel.from_pretrained(world / "clip")(**given)
        cosines = F.cosine_similarity(theirs.image_embeds, theirs.text_embeds)
        ours = reward(images, PROMPTS)
    torch.testing.assert_close(ours, cosines, atol=5e-3, rtol=0)
    assert (ours - reward(images, PROMPTS[::-1])).abs().max() > 0.02  # control


def test_the_gradient_reaches_the_image_and_nothing_else(world):
    reward, images = load_reward(world / "clip"), pictures(32, 32).requires_grad_()
    reward(images, PROMPTS).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in reward.parameters())


def test_it_teaches_alone_and_the_score_rises(world, tmp_path):
    own = {"detector": None, "second_detector": None, "pixel_weight": 0.0, "offline_weight": 0.0}
    own |= {"image_reward": world / "clip", "image_weight": 1.0, "guard": "off", "offline": None}
    settings = config(world, tmp_path, steps=12, watch_every=12, lock_weight=0.0, **own)
    assert train.main(settings) == 0
    figures = losses(tmp_path)
    assert figures[12]["image_reward"] > figures[0]["image_reward"]
    assert figures[1]["image"] == pytest.approx(-figures[0]["image_reward"], abs=0.05)


def test_beside_a_detector_it_changes_what_is_learnt(world, tmp_path):
    both = {"image_reward": world / "clip"}
    for name, weight in (("looks", 0.0), ("teaches", 1.0)):
        train.main(config(world, tmp_path / name, steps=2, image_weight=weight, **both))
    train.main(config(world, tmp_path / "without", steps=2))
    looks, teaches, without = (
        losses(tmp_path / name)[1] for name in ("looks", "teaches", "without")
    )
    assert looks["gradient_norm"] == without["gradient_norm"] != teaches["gradient_norm"]
    assert looks["image"] == 0 != teaches["image"]


def test_it_guards_the_prompt(world, tmp_path):
    settings = {"image_reward": world / "clip", "watch_images": 16, "watch_every": 1, "steps": 1}
    train.main(config(world, tmp_path, **settings))
    assert "change_image_reward" in losses(tmp_path)[1]


def test_its_memory_is_counted(world):
    own = {"image_reward": world / "clip", "image_weight": 1.0}
    without = phases.count(config(world, world / "run"), 1)[0]
    found = phases.count(config(world, world / "run", **own), 1)[0]
    assert found.resident["image reward"] > 0
    reward = phases.REWARD
    assert found.phases[reward].flops > without.phases[reward].flops
    assert found.phases[reward].peak > without.phases[reward].peak


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "damaged"),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "siglip"})), "siglip"),
        (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), "damaged"),
        (lambda f: [path.unlink() for path in f.glob("*token*")], "no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text('{"model": '), "tokenizer.json is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is damaged"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be read as a CLIP"),
        (lambda f: changed(f / "config.json", projection_dim="7"), "cannot be read as a CLIP"),
        (
            lambda f: changed(f / "preprocessor_config.json", image_mean=[0.5]),
            "no three values for image_mean",
        ),
        (lambda f: renamed(f), "do not fit its config.json .'text_projection.weight'."),
    ],
)
def test_a_bad_folder_is_refused_before_the_base_is_opened(world, tmp_path, change, message):
    change(save_clip(tmp_path / "clip"))
    with pytest.raises(UserError, match=message):
        train.main(config(world, tmp_path / "run", image_reward=tmp_path / "clip"))
    assert not (tmp_path / "run").exists()


def test_a_weight_without_a_reward_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="image_weight needs an image_reward"):
        config(world, tmp_path, image_weight=1.0)


def test_a_lock_without_a_detector_is_refused(world, tmp_path):
    own = {"image_reward": world / "clip", "image_weight": 1.0, "pixel_weight": 0.0}
    with pytest.raises(ValueError, match="set lock_weight to 0"):
        config(world, tmp_path, lock_weight=1.0, **own)
