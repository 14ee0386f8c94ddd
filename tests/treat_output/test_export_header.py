"""The header of an exported file: every key of the format, hashes that recompute, no secret."""

import hashlib
import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
import yaml

from core import checkpoint
from core.errors import UserError
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import digest as detector_digest
from detector.storage import save_detector
from treat import export, verify
from treat.adapter import Adapter

TOKEN = "hf_" + "aB3dE6gH" * 4
WIDE = 40_000
"""Sides that make a file longer than the first 0x110000 bytes, which kohya's first hash reads."""
MODULES = {
    "schnell": ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q"),
    "sdxl": ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
             "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
}  # fmt: skip
SPEC = ("sai_model_spec", "architecture", "implementation", "title", "author", "date",
        "description", "resolution", "license", "usage_hint", "tags", "hash_sha256")  # fmt: skip
KOHYA = ("network_dim", "network_alpha", "network_module", "base_model_version", "learning_rate",
         "steps", "seed", "output_name")  # fmt: skip
OURS = ("detector_sha256", "step", "config_sha256", "artifact_frequency_before",
        "artifact_frequency_after")  # fmt: skip
KEYS = {
    "format", "lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash",
    *(f"modelspec.{name}" for name in SPEC), *(f"ss_{name}" for name in KOHYA),
    *(f"diffdoctor.{name}" for name in OURS),
}  # fmt: skip


def trained(folder, modules):
    """A run folder as `diffdoctor treat` leaves it, with paths in its settings."""
    draw = torch.Generator().manual_seed(0)
    sides = {"A": (4, WIDE), "B": (WIDE, 4)}
    adapter = {f"{name}.lora_{half}.weight": torch.randn(*sides[half], generator=draw)
               for name in modules for half in "AB"}  # fmt: skip
    (folder / "run/checkpoints").mkdir(parents=True)
    checkpoint.save(folder / "run/checkpoints", 5, {"adapter": adapter}, {})
    save_detector(SegformerDetector(SegformerConfig(), seed=0), folder / "detector", {})
    settings = {"base": str(folder / "bases/sdxl-mine"), "detector": str(folder / "detector"),
                "learning_rate": 0.001, "seed": 7, "width": 64, "height": 48}  # fmt: skip
    (folder / "run/config.yaml").write_text(json.dumps(settings))
    (folder / "run/summary.json").write_text(json.dumps({"best_step": 5}))
    arms = {"base": {"artifact_frequency": 0.5}, "adapter": {"artifact_frequency": 0.25}}
    (folder / "evaluation/images/adapter").mkdir(parents=True)
    drawn = {"sha256": Adapter(adapter).digest}
    (folder / "evaluation/images/adapter/adapter.json").write_text(json.dumps(drawn))
    (folder / "evaluation/summary.json").write_text(json.dumps({"arms": arms}))
    return folder / "run"


@pytest.fixture(params=MODULES)
def exported(request, tmp_path, monkeypatch):
    """The folder of the world and the name of the base's kind."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    given = {
        "run": trained(tmp_path, MODULES[request.param]),
        "evaluation": tmp_path / "evaluation",
    }
    said = {"title": "Steady hands", "author": "me", "license": "apache-2.0"}
    said["architecture"] = request.param
    export.main(export.Config(**given, **said, out=tmp_path / "out"))
    return tmp_path, request.param


def header(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def test_every_key_of_the_format_is_there(exported):
    folder, kind = exported
    said = header(folder / "out" / export.WEIGHTS)
    assert set(said) == KEYS
    expected = {
        "format": "pt", "modelspec.sai_model_spec": "1.0.1", "modelspec.title": "Steady hands",
        "modelspec.author": "me", "modelspec.license": "apache-2.0",
        "modelspec.resolution": "64x48", "ss_network_dim": "4", "ss_network_alpha": "4.0",
        "ss_learning_rate": "0.001", "ss_steps": "5", "ss_seed": "7", "diffdoctor.step": "5",
        "diffdoctor.artifact_frequency_before": "0.5",
        "diffdoctor.artifact_frequency_after": "0.25",
        "diffdoctor.detector_sha256": detector_digest(folder / "detector"),
    }  # fmt: skip
    assert {name: said[name] for name in expected} == expected
    if kind == "sdxl":
        kohya = header(folder / "out" / export.KOHYA)
        assert set(kohya) == KEYS - {"lora_adapter_metadata"}


def test_hashes_recompute(exported):
    """As sd-scripts takes them: over a file whose header has the training's entries alone."""
    folder, _ = exported
    for path in (folder / "out").glob("*.safetensors"):
        said, tensors = header(path), safetensors.torch.load_file(path)
        content = path.read_bytes()
        whole = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
        assert said["sshs_model_hash"] == whole and said["modelspec.hash_sha256"] == "0x" + whole
        training = {name: value for name, value in said.items() if name.startswith("ss_")}
        assert training["ss_output_name"] == path.stem
        again = safetensors.torch.save(tensors, metadata=training)
        start = 0x100000
        assert len(again) > start + 0x10000
        legacy = hashlib.sha256(again[start : start + 0x10000]).hexdigest()[:8]
        assert said["sshs_legacy_hash"] == legacy
        assert not any(one.code == "hash" for one in verify.examine(path).findings)


def test_no_path_and_no_token_is_in_any_file(exported):
    folder, _ = exported
    written = list((folder / "out").iterdir())
    assert len(written) >= 2
    for path in written:
        content = path.read_bytes()
        for secret in (TOKEN, str(folder), str(Path.home()), folder.name):
            assert secret.encode() not in content, (path.name, secret)


def test_the_card_shows_the_picture_where_there_is_one(exported):
    folder, kind = exported
    text = (folder / "out/README.md").read_text()
    assert "50.0% before, 25.0% after" in text and "before_after.png" not in text
    (folder / "evaluation/sheet.png").write_bytes(b"a picture")
    given = {"run": folder / "run", "evaluation": folder / "evaluation", "architecture": kind}
    export.main(export.Config(**given, out=folder / "again"))
    front = yaml.safe_load((folder / "again/README.md").read_text().split("---\n")[1])
    assert front["widget"][0]["output"] == {"url": "before_after.png"}
    assert (folder / "again/before_after.png").read_bytes() == b"a picture"


def test_figures_of_another_adapter_are_refused(exported):
    folder, kind = exported
    given = {"run": folder / "run", "evaluation": folder / "evaluation", "architecture": kind}
    for changed in ({"arm": "base"}, {"arm": "other"}):
        with pytest.raises(UserError, match="no finished evaluation"):
            export.main(export.Config(**given, **changed, out=folder / "again"))
    summary = folder / "evaluation/summary.json"
    said = summary.read_text()
    summary.write_text(said.replace("0.25", "NaN"))
    with pytest.raises(UserError, match="no finished evaluation"):
        export.main(export.Config(**given, out=folder / "again"))
    summary.write_text(said)
    note = folder / "evaluation/images/adapter/adapter.json"
    for drawn in ("0", ""):  # as the base's own note has it
        note.write_text(json.dumps({"sha256": drawn}))
        with pytest.raises(UserError, match="drawn with another adapter"):
            export.main(export.Config(**given, out=folder / "again"))
    assert not (folder / "again").exists()
