"""Samples of a base: the prompts of a part in turn, the same image for the same seed, resumable."""

import json
from pathlib import Path

import pytest
import torch

from base_models.load import load_base
from core.errors import UserError
from core.images import read_image, read_images
from miniature import sample
from miniature.prompts import category_of, split
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bases") / "small")


def config(base: Path, out: Path, **changes) -> sample.Config:
    return sample.Config(**({"base": str(base), "out": out, "n": 6, "steps": 1} | changes))


def test_program_draws_and_goes_on(base: Path, tmp_path: Path):
    sample.main(config(base, tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [line["category"] for line in lines[:5]] == sorted(
        {line["category"] for line in lines}, key=[line["category"] for line in lines].index
    )
    assert all(line["prompt"] in split()["held_out"] for line in lines)
    assert all(line["category"] == category_of(line["prompt"]) for line in lines)
    assert all(line["generator"] == "small" for line in lines)
    paths = [tmp_path / "images" / line["file"] for line in lines]
    images = read_images(paths)
    assert images.shape == (6, 3, 64, 64) and len(images.unique(dim=0)) == 6
    assert read_image(tmp_path / "sheet.png").shape[2] > 64
    paths[3].unlink()
    sample.main(config(base, tmp_path))
    assert (read_image(paths[3]) - images[3]).abs().max() <= 1.01 / 255
    with pytest.raises(UserError, match="other settings"):
        sample.main(config(base, tmp_path, steps=2))


def test_records_are_prefix_stable_and_seeded():
    prompts = split()["train"]
    first = sample.sample_records("bases/newest", prompts, 10, seed=1)
    assert first[:4] == sample.sample_records("bases/newest", prompts, 4, seed=1)
    seeds = [record.seed for record in first]
    assert len(set(seeds)) == 10 and first[0].generator == "newest"
    other = sample.sample_records("newest", prompts, 10, seed=2)
    assert not {record.seed for record in other} & set(seeds)


def test_draw_follows_the_record(base: Path):
    """The control: another seed is another image."""
    model = load_base(str(base))
    records = sample.sample_records("small", split()["train"], 2, seed=1)
    (images, part), *_ = sample.draw_records(model, records, steps=1)
    again = next(sample.draw_records(model, records[1:], steps=1))[0]
    other = records[1].model_copy(update={"seed": 7})
    changed = next(sample.draw_records(model, [other], steps=1))[0]
    assert part == records and (again[0] - images[1]).abs().max() <= 1.01 / 255
    assert not torch.allclose(changed[0], images[1], atol=0.05)


def test_strange_bases_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="newest, middle, oldest"):
        sample.main(config(tmp_path / "none", tmp_path / "out"))
