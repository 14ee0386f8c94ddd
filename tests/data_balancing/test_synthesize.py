"""Images of a tiny base in shards: those of the plain call, and the same bytes after any stop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPAGPipeline

from base_models.load import load_base
from core.digests import model_digest
from core.errors import UserError
from core.images import to_uint8
from core.shards import ShardStore
from data_balancing import synthesize
from tests.tiny import SIZE, save_tiny, tiny_pipeline
from tests.tiny.unets import tiny_sd

PROMPTS = [("a hand waving", "hand"), ("a red car", "car"), ("an old tree", "plant")]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bases") / "small")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": prompt, "category": category} for prompt, category in PROMPTS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config(base: Path, folder: Path, **changes) -> synthesize.Config:
    settings = {
        "base": str(base),
        "prompts": folder / "prompts.jsonl",
        "out": folder / "store",
        "height": SIZE,
        "width": SIZE,
        "steps": 2,
        "shard_size": 2,
        "batch": 3,
        "device": "cpu",
    }
    return synthesize.Config(**{**settings, **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def test_records_and_images(base: Path, prompts: Path, tmp_path: Path):
    synthesize.main(config(base, tmp_path, licence="CC0-1.0"))
    store = ShardStore(tmp_path / "store")
    records = store.records()
    assert [(r.prompt, r.category) for r in records] == [p for p in PROMPTS for _ in range(2)]
    assert all(r.source == "pseudo" and r.licence == "CC0-1.0" for r in records)
    assert len({r.seed for r in records}) == 6 and len({s.image.tobytes() for s in store}) == 6
    name, digest = records[0].generator.split("@")
    assert name == "small" and digest == model_digest(base)[:12]
    assert all(sample.mask is None for sample in store)


def test_an_image_is_that_of_the_plain_call(base: Path, prompts: Path, tmp_path: Path):
    """diffusers' own pipeline from the same noise; and the control: another seed's image."""
    synthesize.main(config(base, tmp_path, batch=1))
    sample = ShardStore(tmp_path / "store")[2]
    model = load_base(str(base))

    pipeline = FluxPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)

    def plain(seed: int) -> np.ndarray:
        image = pipeline(
            sample.record.prompt,
            height=SIZE,
            width=SIZE,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=model.text_tokens,
            output_type="pt",
        ).images
        return to_uint8(image)[0]

    assert sample.record.seed is not None
    assert np.array_equal(plain(sample.record.seed), sample.image)
    assert not np.array_equal(plain(sample.record.seed + 1), sample.image)


def test_a_base_draws_its_own_size_where_none_is_said(prompts: Path, tmp_path: Path):
    base = save_tiny(tmp_path / "base")
    said = base / "vae/config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"sample_size": 2 * SIZE}))
    synthesize.main(config(base, tmp_path, height=None, width=SIZE))
    assert ShardStore(tmp_path / "store")[0].image.shape == (2 * SIZE, SIZE, 3)
    assert json.loads((tmp_path / "store/synthesis.json").read_text())["height"] == 2 * SIZE


def test_any_pipeline_of_diffusers_draws(prompts: Path, tmp_path: Path):
    """One of no family here: the images of its own call at the same seeds."""
    parts = tiny_sd().components
    other = StableDiffusionPAGPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    other.save_pretrained(tmp_path / "other")
    given = config(tmp_path / "other", tmp_path, height=64, width=64, batch=1, steps=3)
    synthesize.main(given)
    one = ShardStore(tmp_path / "store")[3]

    def plain(seed: int) -> np.ndarray:
        images = other(
            one.record.prompt,
            height=64,
            width=64,
            num_inference_steps=3,
            generator=[torch.Generator().manual_seed(seed)],
            output_type="pt",
        ).images
        return to_uint8(images)[0]

    assert np.array_equal(plain(one.record.seed), one.image)
    assert not np.array_equal(plain(one.record.seed + 1), one.image)
    own = config(tmp_path / "other", tmp_path, height=None, width=None, steps=1, n_per_prompt=1)
    synthesize.main(own.model_copy(update={"out": tmp_path / "own"}))
    side = other.unet.config.sample_size * other.vae_scale_factor
    assert side != 64 and ShardStore(tmp_path / "own")[0].image.shape == (side, side, 3)


@pytest.mark.parametrize(
    ("name", "said"),
    [("DDPMPipeline", "takes no prompt"), ("NoPipeline", "does not have")],
)
def test_a_pipeline_that_draws_no_prompts_is_refused(
    base: Path, prompts: Path, tmp_path: Path, name: str, said: str
):
    (tmp_path / "other").mkdir()
    index = {"_class_name": name, "_diffusers_version": "0.42.0"}
    (tmp_path / "other/model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=said):
        synthesize.main(config(tmp_path / "other", tmp_path))
    assert not (tmp_path / "store").exists()


def test_interrupted_and_resumed_are_the_same_bytes(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch
):
    synthesize.main(config(base, tmp_path))
    draw, drawn = synthesize.sample, []

    def stopping(model, prompts, seeds, **settings):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(seeds)
        return draw(model, prompts, seeds, **settings)

    broken = config(base, tmp_path, out=tmp_path / "broken")
    monkeypatch.setattr(synthesize, "sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        synthesize.main(broken)
    assert len(ShardStore(tmp_path / "broken")) == 4
    monkeypatch.setattr(synthesize, "sample", draw)
    synthesize.main(broken)
    assert content(tmp_path / "broken") == content(tmp_path / "store")
    synthesize.main(config(base, tmp_path, out=tmp_path / "other", seed=1))  # the control
    assert content(tmp_path / "other") != content(tmp_path / "store")


def test_again_draws_nothing_and_more_prompts_draw_the_rest(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch
):
    synthesize.main(config(base, tmp_path))
    first = content(tmp_path / "store")
    monkeypatch.setattr(synthesize, "load_base", lambda *_, **__: pytest.fail("drawn again"))
    synthesize.main(config(base, tmp_path))
    assert content(tmp_path / "store") == first
    monkeypatch.undo()
    prompts.write_text(prompts.read_text() + '{"prompt": "a bird"}\n{"prompt": "a red car"}\n')
    synthesize.main(config(base, tmp_path))
    store = ShardStore(tmp_path / "store")
    assert len(store) == 8 and store.records()[-1].prompt == "a bird"


def test_a_key_follows_from_the_prompt_alone():
    line = synthesize.PromptLine
    some = synthesize.records([line(prompt="a"), line(prompt="b")], 2, 0, "g")
    more = synthesize.records([line(prompt="b"), line(prompt=" b "), line(prompt="c")], 3, 0, "g")
    assert [r.key for r in some[2:]] == [r.key for r in more[:2]] and len(more) == 6
    assert not {r.key for r in some} & {
        r.key for r in synthesize.records([line(prompt="a")], 2, 1, "g")
    }


def test_bad_input_is_refused_before_anything_is_read(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(synthesize, "load_base", lambda *_, **__: pytest.fail("loaded"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "x"}\n{"text": "y"}\n')
    with pytest.raises(UserError, match="line 2"):
        synthesize.main(config(base, tmp_path, prompts=bad))
    with pytest.raises(UserError, match="divide|multiple"):
        synthesize.main(config(base, tmp_path, height=SIZE + 1))
    with pytest.raises(UserError, match=r"no base model|model_index"):
        synthesize.main(config(tmp_path / "none", tmp_path))
    assert not (tmp_path / "store").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="other files"):
        synthesize.main(config(base, tmp_path, out=tmp_path / "full"))


def test_guidance_of_a_base_without_any_is_refused(base: Path, prompts: Path, tmp_path: Path):
    with pytest.raises(UserError, match="small draws without guidance: leave --guidance out"):
        synthesize.main(config(base, tmp_path, guidance=3.5))
    assert not (tmp_path / "store").exists()
    tiny_pipeline(guidance_embeds=True).save_pretrained(tmp_path / "dev")
    assert synthesize.check_drawing(str(tmp_path / "dev"), SIZE, SIZE, 3.5)  # the control


def test_guidance_of_a_foreign_pipeline_without_any_is_refused(tmp_path: Path, monkeypatch):
    parts = tiny_sd().components
    other = StableDiffusionPAGPipeline(**parts, requires_safety_checker=False)
    other.save_pretrained(tmp_path / "other")
    assert not synthesize.check_drawing(str(tmp_path / "other"), 64, 64, 3.5)

    def call(self, prompt, height, width, num_inference_steps, generator, output_type):
        """As a distilled pipeline takes it."""

    monkeypatch.setattr(StableDiffusionPAGPipeline, "__call__", call)
    with pytest.raises(UserError, match="PAGPipeline draws without guidance: leave --guidance out"):
        synthesize.check_drawing(str(tmp_path / "other"), 64, 64, 3.5)
    assert not synthesize.check_drawing(str(tmp_path / "other"), 64, 64, None)


def test_other_settings_do_not_mix(base: Path, prompts: Path, tmp_path: Path):
    synthesize.main(config(base, tmp_path))
    with pytest.raises(UserError, match="other settings"):
        synthesize.main(config(base, tmp_path, steps=3))


def test_half_precision(base: Path, prompts: Path, tmp_path: Path):
    synthesize.main(config(base, tmp_path, dtype="bf16", n_per_prompt=1))
    assert len(ShardStore(tmp_path / "store")) == 3
