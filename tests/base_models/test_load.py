"""Opening a base: a whole folder opens, and every kind of damage is one sentence with its cure."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from diffusers import FluxPipeline
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from base_models.load import check_base, load_base
from core.errors import UserError
from tests.tiny import SIZE, save_tiny, tiny_flux


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


def test_a_saved_folder_opens_to_the_same_model(saved):
    model, reference = load_base(str(saved)), tiny_flux()
    text, schedule = model.encode_prompts(["a hand"]), model.schedule(2, SIZE, SIZE)
    noise = model.noise([0], SIZE, SIZE)
    expected = reference.step(noise, 0, schedule, reference.encode_prompts(["a hand"]))
    assert torch.equal(model.step(noise, 0, schedule, text), expected)


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
            "https://huggingface.co/some-lab/some-model",
        ),
        (lambda r: LocalEntryNotFoundError("offline"), "check the connection"),
    ],
)
def test_what_the_hub_answers(monkeypatch, error, message):
    response = SimpleNamespace(headers={}, status_code=403, request=None)

    def answer(*_args, **_kwargs):
        raise error(response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(UserError, match=message):
        load_base("some-lab/some-model")
