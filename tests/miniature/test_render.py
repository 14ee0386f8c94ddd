"""Renders: valid, reproducible, read by every stage; broken ones labelled by what was changed."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from core.errors import UserError
from core.images import from_uint8, read_image, read_images
from core.seeds import generator
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from detector.data import open_labelled
from miniature import label, render
from miniature.faults import FAULTS
from miniature.law import CATEGORIES, prompts
from miniature.oracle import Oracle
from miniature.prompts import category_of, split
from miniature.vae import make_vae
from treat.offline import read_offline


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_vae().eval()


def test_samples_pass_for_photographs(tmp_path: Path):
    samples = render.render_samples(10, seed=3)
    assert Counter(sample.record.category for sample in samples) == dict.fromkeys(CATEGORIES, 2)
    for sample in samples:
        assert sample.record.source == "real" and sample.record.caption == sample.record.prompt
        assert sample.mask is not None and sample.mask.max() == 0
    images = from_uint8(np.stack([sample.image for sample in samples]))
    found = Oracle().diagnose(images, [sample.record.prompt for sample in samples])
    assert not found.flagged.any()
    with ShardWriter(tmp_path) as writer:
        for sample in samples:
            writer.write(sample)
    assert np.array_equal(ShardStore(tmp_path)[4].image, samples[4].image)
    assert read_offline(tmp_path).captions == [sample.record.prompt for sample in samples]


def test_an_image_depends_on_seed_and_place_alone():
    few, many, other = (render.render_samples(n, seed) for n, seed in ((3, 1), (7, 1), (3, 2)))
    for a, b in zip(few, many[:3], strict=True):
        assert np.array_equal(a.image, b.image) and a.record == b.record
    assert not np.array_equal(few[0].image, other[0].image)


def test_only_allowed_prompts_are_drawn_as_they_say():
    allowed = split()["search"]
    samples = render.render_samples(15, 0, prompts=allowed, off_grid=True)
    said = [sample.record.prompt for sample in samples]
    assert set(said) <= set(allowed)
    images = from_uint8(np.stack([sample.image for sample in samples]))
    found = Oracle().diagnose(images, said)
    assert not found.flagged.any()


def test_a_prompt_is_shown():
    hand = "a right hand, fingers spread, dark skin, over snow"
    for prompt in (hand, "an orange sign saying milk, over grass"):
        scene = render.scene_of(prompt, generator(1))
        assert prompts(scene) == [prompt]


def test_the_autoencoder_changes_the_image_but_not_the_label(vae: AutoencoderKL):
    for make in (render.render_samples, render.fault_samples):
        plain, through = make(3, 5), make(3, 5, vae)
        for a, b in zip(plain, through, strict=True):
            assert a.mask is not None and b.mask is not None and np.array_equal(a.mask, b.mask)
            assert a.image.shape == b.image.shape and not np.array_equal(a.image, b.image)


def test_broken_samples_are_labelled_where_they_were_changed():
    samples = render.fault_samples(32, seed=1)
    kinds = Counter(sample.record.generator for sample in samples)
    assert kinds == {"corruption": 16, **dict.fromkeys(FAULTS, 2)}
    for sample in samples:
        assert sample.record.source == "procedural" and sample.mask is not None
        assert set(np.unique(sample.mask)) <= {0, 255}
        assert sample.record.category == category_of(sample.record.prompt)
        if sample.record.generator != "blur":
            assert sample.mask.any()
    again = render.fault_samples(4, seed=1)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(again, samples, strict=False))


def test_program_writes_what_the_other_stages_read(tmp_path: Path, vae: AutoencoderKL):
    base, out = tmp_path / "base", tmp_path / "out"
    vae.save_pretrained(base / "vae")
    (base / "model_index.json").write_text("{}")
    config = render.Config(out=out, n=6, categories=("sign", "scenery"), vae=str(base), seed=4)
    render.main(config)
    lines = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert [line["category"] for line in lines] == ["sign", "scenery"] * 3
    assert all((out / "images" / line["file"]).is_file() for line in lines)
    assert read_offline(out / "images").captions == [line["prompt"] for line in lines]
    gone = out / "images" / lines[2]["file"]
    before = read_image(gone)
    gone.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}
    render.main(config)
    assert (read_image(gone) - before).abs().max() <= 1.01 / 255  # autoencoded by itself
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    with pytest.raises(UserError, match="other settings"):
        render.main(config.model_copy(update={"seed": 5}))
    with pytest.raises(UserError, match="other settings"):
        render.main(config.model_copy(update={"vae": None}))


def test_renders_can_be_labelled_and_learnt_from(tmp_path: Path):
    render.main(render.Config(out=tmp_path, n=5))
    label.main(label.Config(folder=tmp_path))
    samples, records = open_labelled([tmp_path])
    assert len(samples) == 5 and {record.category for record in records} == set(CATEGORIES)
    assert all(sample.mask is not None and sample.mask.max() == 0 for sample in samples)
    paths = sorted((tmp_path / "images").glob("*.png"))
    assert read_images(paths).shape == (5, 3, 64, 64)
