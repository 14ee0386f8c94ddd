"""The builder makes three grades that plain diffusers opens, and takes up where it stopped."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    KolorsPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import T5EncoderModel

from base_models.load import load_base
from core.errors import UserError
from core.run import PAUSED, Run
from miniature import build, kolors, oracle, stages, text
from miniature.bases import GRADES, base_folder
from miniature.families import FAMILIES
from miniature.flux import Flux
from miniature.law import CATEGORIES, all_prompts
from miniature.prompts import split
from miniature.text import T5_LENGTH, adopt

RESULTS = {
    "vae": "vae.safetensors",
    "readers": "text_encoder.safetensors",
    "pool": "pool.safetensors",
    "network": "newest.safetensors",
    "decoder": "decoder.safetensors",
}
"""What each stage leaves, in their order."""
SLOW = pytest.mark.slow


def config(folder: Path, **changes) -> build.Config:
    few = {"vae_steps": 1, "decoder_steps": 1, "read_steps": 1, "pool": 120, "steps": 8, "batch": 4}
    places = {"out": folder / "bases", "run": folder / "run", "threads": 1}
    return build.Config(**(few | places | changes))


@pytest.fixture(scope="module", autouse=True)
def few_faces():
    """Two values of all that a face can be: 356 prompts to read, not 1,686."""
    face = CATEGORIES["face"]
    kinds = {name: values[:2] for name, values in face.kinds.items()}
    layers = {name: dict(list(palette.items())[:2]) for name, palette in face.layers.items()}
    caches = (all_prompts, text.grammar_words, kolors.pieces_folder, split,
              oracle.proposals, oracle.categories)  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(CATEGORIES, "face", replace(face, kinds=kinds, layers=layers))
        for cached in caches:
            cached.cache_clear()
        assert len(all_prompts()) == 356
        yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    few_images = pytest.MonkeyPatch()
    few_images.setattr(stages, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
    assert build.main(config(folder)) == 0
    few_images.undo()
    return folder


@pytest.mark.parametrize("grade", GRADES)
def test_every_grade_opens_in_plain_diffusers_and_draws(built: Path, grade: str):
    pipeline = FluxPipeline.from_pretrained(built / "bases" / grade)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a cream sign saying stop, over snow", height=64, width=64, num_inference_steps=2,
        max_sequence_length=T5_LENGTH, output_type="pt",
    ).images[0]  # fmt: skip
    assert image.shape == (3, 64, 64) and image.isfinite().all()


def test_grades_differ_and_share_their_autoencoder(built: Path):
    path = "transformer/diffusion_pytorch_model.safetensors"
    weights = {(built / "bases" / grade / path).read_bytes() for grade in GRADES}
    assert len(weights) == 3
    assert (built / "bases/oldest/vae").resolve() == (built / "bases/newest/vae").resolve()


@pytest.mark.parametrize(
    ("before", "stage"),
    [
        (2, "readers"),
        (16, "network"),
        *(pytest.param(*one, marks=SLOW) for one in ((0, "vae"), (3, "pool"), (28, "decoder"))),
    ],
)
def test_stopped_in_any_stage_it_resumes_exactly(
    before: int, stage: str, built: Path, tmp_path: Path, monkeypatch
):
    """A signal comes after so many looks for one."""
    monkeypatch.setattr(stages, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
    looks = iter([False] * before + [True] * 100)
    monkeypatch.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
    assert build.main(config(tmp_path)) == PAUSED
    finished = [name for name, result in RESULTS.items() if (tmp_path / "run" / result).exists()]
    assert finished == list(RESULTS)[: list(RESULTS).index(stage)]
    monkeypatch.setattr(Run, "interrupted", property(lambda run: False))
    assert build.main(config(tmp_path)) == 0
    for part in (*(f"{grade}/transformer" for grade in GRADES), "newest/vae"):
        path = f"bases/{part}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / path).read_bytes() == (built / path).read_bytes()


def test_a_build_goes_on_from_a_pipeline_folder(built: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stages, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
    start = built / "bases/newest"
    settings = config(tmp_path, start=start, decoder_steps=0, rate=1e-12)
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
            getattr(before, name).parameters(), getattr(after, name).parameters(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in weights) is same


def test_readers_of_new_prompts_keep_what_the_old_ones_said(tmp_path: Path, monkeypatch):
    """An earlier law with a word less and shorter prompts: of the rest is said what was said."""
    words, prompts = text.grammar_words() - {"long"}, list(all_prompts())
    rows = torch.tensor([" long " not in prompt for prompt in prompts])
    same = [prompt for prompt in prompts if " long " not in prompt]
    with monkeypatch.context() as earlier:
        earlier.setattr(text, "grammar_words", lambda: words)
        earlier.setattr(text, "CLIP_LENGTH", text.CLIP_LENGTH - 5)
        old = save_readers(tmp_path, same)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        readers = FAMILIES["flux"].make_readers()
    new = {name: adopt(readers[name], tmp_path / name, own) for name, own in tokenizers().items()}
    assert new == {"text_encoder": set(), "text_encoder_2": {"▁long"}}
    said = FAMILIES["flux"].conditioning(readers)
    for name, before in old.items():
        assert torch.allclose(said[name][rows], before, atol=1e-5)
    free, held = (moved(readers, held, rows) for held in ([], same))
    assert held < free / 2


def save_readers(folder: Path, prompts: list[str]) -> dict[str, torch.Tensor]:
    """Readers and tokenizers as in a pipeline's folder; what they say of the prompts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        readers = FAMILIES["flux"].make_readers()
    for name, tokenizer in tokenizers().items():
        readers[name].save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name.replace("text_encoder", "tokenizer"))
    with torch.no_grad():
        return Flux().read(readers, prompts)


def tokenizers() -> dict:
    return FAMILIES["flux"].make_tokenizers()


def moved(readers: dict, held: list[str], rows: torch.Tensor) -> float:
    """How far a short lesson moves what copies of the readers say of the prompts in `rows`."""
    taught = {name: copy.deepcopy(reader) for name, reader in readers.items()}
    before, _ = (
        FAMILIES["flux"].conditioning(taught),
        FAMILIES["flux"].teach(taught, range(20), 3, held),
    )
    after = FAMILIES["flux"].conditioning(taught)
    return float((after["pooled"] - before["pooled"])[rows].square().mean())


@pytest.mark.parametrize(
    "given, says",
    [
        ({"start": "newest", "autoencoder": "newest"}, "leave --autoencoder out"),
        ({"new_readers": True}, "leave --new-readers out"),
        ({"oldest": 0.5, "middle": 0.4}, "--oldest must be less"),
        ({"steps": 4}, "--steps enough"),
        ({"family": "sdxl", "start": "newest"}, "is a FluxPipeline, no sdxl"),
        ({"device": "cuda:7"}, "no device"),
        ({"device": "cpu", "graph": True}, "--graph is for a CUDA GPU"),
        ({"family": "kolors", "kin": "newest"}, "is a FluxPipeline, no kin of kolors"),
        ({"kin": "newest"}, "no kin of flux"),
        ({"start": "newest", "kin": "newest"}, "leave --kin out"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_made(tmp_path: Path, given, says):
    with pytest.raises(UserError, match=says):
        build.main(config(tmp_path, **given))
    assert not (tmp_path / "run").exists()


def test_where_nothing_can_be_written_is_refused_first(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another --out"):
        build.main(config(tmp_path, out=tmp_path / "file/bases"))
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_there_already_is_not_overwritten(built: Path, tmp_path: Path):
    out = built / "bases"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UserError, match="holds a base oldest already: name another --out"):
        build.main(config(tmp_path, out=out))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert not (tmp_path / "run").exists()


def test_readers_of_other_prompts_are_no_start(built: Path, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(built / "bases/newest", old)
    t5 = T5EncoderModel.from_pretrained(old / "text_encoder_2")
    t5.resize_token_embeddings(t5.config.vocab_size + 3)
    t5.save_pretrained(old / "text_encoder_2")
    with pytest.raises(UserError, match="--new-readers"):
        build.main(config(tmp_path, start=old))


def test_a_grade_that_fewer_steps_have_passed_by_is_taken_where_the_build_goes_on(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(stages, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
    looks = iter([False] * 19 + [True] * 100)  # in the network's fourth update
    monkeypatch.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
    assert build.main(config(tmp_path, steps=1000)) == PAUSED
    monkeypatch.setattr(Run, "interrupted", property(lambda run: False))
    assert build.main(config(tmp_path, steps=10)) == 0
    assert all((tmp_path / "bases" / grade / "transformer").is_dir() for grade in GRADES)


@pytest.mark.parametrize(
    "family, pipeline", [("sdxl", StableDiffusionXLPipeline), ("kolors", KolorsPipeline)]
)
def test_other_families_learn_and_open_in_their_plain_pipelines(
    tmp_path: Path, family: str, pipeline: type[DiffusionPipeline]
):
    settings = config(tmp_path, family=family, autoencoder=Path("newest"), steps=4)
    assert build.main(settings) == 0
    opened = pipeline.from_pretrained(tmp_path / "bases" / family)
    assert load_base(str(tmp_path / "bases" / family)).family == family
    assert opened.vae.config.shift_factor == 0
    begun = stages.fresh(FAMILIES[family].make_network, 0, stages.NETWORK).state_dict()
    after = opened.unet.state_dict()
    assert any(not torch.equal(w.half().float(), after[name]) for name, w in begun.items())


@pytest.mark.parametrize("family, share", [("flux", 0.0), ("sdxl", stages.DROPPED)])
def test_guided_families_learn_without_some_captions(tmp_path: Path, family: str, share: float):
    pool = {
        "latents": torch.zeros(100, 1), "stamped": torch.tensor(10), "prompts": torch.arange(100),
    }  # fmt: skip
    _, said = stages.draw_batch(config(tmp_path, family=family, batch=3000), pool, 3)
    dropped = (said == len(all_prompts())).float().mean().item()
    assert dropped == pytest.approx(share, abs=0.02 if share else 0)


@SLOW
@pytest.mark.parametrize("faster", [{"bf16": True}, {"compile": True}])
def test_a_faster_build_learns_the_same_within_rounding(
    built: Path, tmp_path: Path, monkeypatch, faster: dict[str, bool]
):
    monkeypatch.setattr(stages, "vae_images", lambda seed: torch.zeros(16, 3, 64, 64).byte())
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


def test_kolors_begins_from_all_of_sdxl_but_what_reads_the_text(tmp_path: Path):
    settings = config(tmp_path, family="sdxl", autoencoder=Path("newest"), steps=4)
    assert build.main(settings) == 0
    kin = tmp_path / "bases/sdxl"
    own = stages.begun_network(config(tmp_path, family="kolors", kin=kin)).state_dict()
    given = load_base(str(kin)).network.state_dict()
    fit = {name for name in own if name in given and torch.equal(own[name], given[name])}
    fresh = {name for name in set(own) - fit if own[name].std() > 0}
    assert len(fit) > 0.9 * len(own)
    assert all("attn2.to_" in name or "encoder_hid_proj" in name for name in fresh)
    narrow = UNet2DConditionModel.from_config(
        {**load_base(str(kin)).network.config, "block_out_channels": (16, 32, 48)}
    )
    narrow.save_pretrained(kin / "unet")
    with pytest.raises(UserError, match="another size: leave --kin out"):
        stages.begun_network(config(tmp_path, family="kolors", kin=kin))
