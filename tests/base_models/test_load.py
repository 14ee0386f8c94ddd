"""Opening a base: a whole folder opens, and every kind of damage is one sentence with its cure."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from base_models import load
from base_models.load import check_base, load_base, locate
from base_models.sizes import check_size
from core.errors import UserError
from tests.base_models.families import CASES, draw
from tests.tiny import save_tiny
from tests.tiny.single_file import save_single_file


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "base")


@pytest.fixture
def nothing_heavy(monkeypatch):
    """Fail the test when weights are loaded."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were loaded before the check")

    monkeypatch.setattr(FluxPipeline, "from_pretrained", refuse)
    monkeypatch.setattr(load, "open_network", refuse)


@pytest.mark.parametrize("name", ["flux", "sdxl", "sd", "kolors"])
def test_a_saved_folder_opens_to_the_same_model(name, tmp_path):
    pipeline = CASES[name].pipeline()
    pipeline.save_pretrained(tmp_path)
    model = load_base(str(tmp_path))
    assert torch.equal(draw(model), draw(CASES[name].model(pipeline)))
    assert not any(weight.requires_grad for weight in model.network.parameters())
    grain = 4 if name == "flux" else 8
    check_size(str(tmp_path), 3 * grain, grain)
    with pytest.raises(UserError, match=f"divide by {grain}"):
        check_size(str(tmp_path), grain // 2, grain)


def test_options_reach_the_familys_wrapper(tmp_path):
    CASES["sdxl"].pipeline().save_pretrained(tmp_path)
    model: Any = load_base(str(tmp_path), guidance=1.0, learn_empty=False)
    assert torch.equal(draw(model), draw(CASES["sdxl, unguided"].model()))
    assert not model.learn_empty


def test_the_safety_checker_is_neither_needed_nor_loaded(tmp_path):
    CASES["sd"].pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert torch.equal(draw(load_base(str(tmp_path))), draw(CASES["sd"].model()))


@pytest.fixture
def single_file(tmp_path):
    """SD in one file, among configs and tokenizers without weights."""
    pipeline = CASES["sd"].pipeline()
    pipeline.save_pretrained(tmp_path)
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.unlink()
    return save_single_file(pipeline, tmp_path / "sd.safetensors")


def test_a_single_file_opens_to_the_same_model(single_file):
    model = load_base(str(single_file))
    assert torch.equal(draw(model), draw(CASES["sd"].model()))
    check_size(str(single_file), 64, 32)
    with pytest.raises(UserError, match="divide by 8"):
        check_size(str(single_file), 60, 32)
    with pytest.raises(UserError, match=r"no \.safetensors weights"):  # control: the folder is bare
        load_base(str(single_file.parent))


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.out.2.weight",
        "first_stage_model.quant_conv.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    ],
)
def test_a_single_file_with_a_tensor_missing(single_file, lost):
    tensors = safetensors.torch.load_file(single_file)
    del tensors[lost]
    safetensors.torch.save_file(tensors, single_file)
    with pytest.raises(UserError, match="no whole StableDiffusionPipeline"):
        load_base(str(single_file))


def test_single_files_that_cannot_be_opened(single_file, folder, tmp_path):
    flux = shutil.copy(single_file, folder / "flux.safetensors")
    with pytest.raises(UserError, match="whole folder"):
        load_base(str(flux))
    alone = shutil.copy(single_file, tmp_path.parent / "alone.safetensors")
    with pytest.raises(UserError, match="among the configs"):
        load_base(str(alone))
    pickled = shutil.copy(single_file, single_file.with_suffix(".ckpt"))
    with pytest.raises(UserError, match="convert it"):
        load_base(str(pickled))
    truncate(single_file)
    with pytest.raises(UserError, match="damaged"):
        load_base(str(single_file))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), "damaged"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "vae is missing"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2 is missing"),
    "broken config": (lambda f: (f / "vae" / "config.json").write_text("[]"), "damaged"),
    "truncated": (
        lambda f: truncate(f / "transformer" / "diffusion_pytorch_model.safetensors"),
        "damaged",
    ),
    "header cut": (
        lambda f: (f / "text_encoder" / "model.safetensors").write_bytes(b"\x05\0"),
        "damaged",
    ),
    "no weights": (
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "no .safetensors",
    ),
    "other family": (
        lambda f: (f / "model_index.json").write_text('{"_class_name": "OtherPipeline"}'),
        "FluxPipeline",
    ),
    "foreign code": (
        lambda f: (f / "model_index.json").write_text(
            json.dumps({"_class_name": "FluxPipeline", "vae": ["my_code", "Vae"]})
        ),
        "never run",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_before_anything_heavy(name, folder, nothing_heavy):
    assert check_base(folder) == "FluxPipeline"  # control: whole before the damage
    harm, message = DAMAGE[name]
    harm(folder)
    with pytest.raises(UserError, match=message):
        load_base(str(folder))


DISAGREE = {
    "more layers": ("transformer", "num_layers", 2, "the weights lack 'transformer_blocks.1."),
    "fewer layers": ("transformer", "num_single_layers", 0, "no place for 'single_transformer"),
    "wider": ("transformer", "joint_attention_dim", 24, "context_embedder"),
    "a word for a number": ("transformer", "num_layers", "two", "do not belong together"),
    "another decoder": ("vae", "layers_per_block", 2, "the weights lack 'decoder."),
    "a deeper reader": ("text_encoder", "num_hidden_layers", 5, "the weights lack '"),
    "a wider reader": ("text_encoder_2", "d_ff", 24, "do not belong together"),
}


@pytest.mark.parametrize("name", DISAGREE)
def test_a_config_of_other_weights_is_named(name, folder):
    """transformers would draw what is missing at random, diffusers leave out what is too much."""
    part, setting, value, message = DISAGREE[name]
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: value}))
    with pytest.raises(UserError, match=message) as raised:
        load_base(str(folder))
    assert f"{path} and the weights beside it" in str(raised.value)


def test_a_missing_shard_of_an_index(folder, nothing_heavy):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "vae" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="00001-of-00002.safetensors is missing"):
        load_base(str(folder))


def test_a_missing_folder(tmp_path, nothing_heavy):
    with pytest.raises(UserError, match="check the path"):
        load_base(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            lambda r: GatedRepoError("gated", response=r),
            "https://huggingface.co/some-lab/some-model and",
        ),
        (lambda r: LocalEntryNotFoundError("offline"), "check the connection"),
        (lambda r: RevisionNotFoundError("none", response=r), "some-model has no revision v9: "),
    ],
)
def test_what_the_hub_answers(monkeypatch, error, message):
    response = SimpleNamespace(headers={}, status_code=403, request=None)

    def answer(*_args, **_kwargs):
        raise error(response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(UserError, match=message):
        load_base("some-lab/some-model@v9")


def test_a_hub_id_may_name_a_revision(monkeypatch, saved, tmp_path):
    asked = []

    def snapshot(name, revision=None, **_):
        asked.append((name, revision))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    for revision in ("", "@v1.0", "@refs/pr/7"):
        assert locate(f"some-lab/some-model{revision}") == saved
    named = "some-lab/some-model"
    assert asked == [(named, None), (named, "v1.0"), (named, "refs/pr/7")]
    with pytest.raises(UserError, match="check the path"):  # which says nothing after the @
        locate("some-lab/some-model@")
    (tmp_path / "base@home").mkdir()
    assert locate(str(tmp_path / "base@home")) == tmp_path / "base@home"
    assert len(asked) == 3


def test_a_hub_base_of_which_only_the_configs_came(monkeypatch, tmp_path):
    save_tiny(tmp_path)
    for path in tmp_path.glob("*/*.safetensors"):
        path.unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert locate("some-lab/some-model", weights=False) == tmp_path
    with pytest.raises(UserError, match="without .safetensors weights: check the connection"):
        load_base("some-lab/some-model")


def test_opening_a_base_switches_cudnns_attention_off(saved):
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_base(str(saved))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
