"""`diffdoctor export`: the run says what it is; nothing unsound is pushed."""

import pytest
import torch

import detector.export
import treat.export
from core import hub
from core.errors import UserError
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import load_detector, save_detector
from diffdoctor import cli
from tests.treat_output import lora_files as files

NAMES = "transformer.single_transformer_blocks.0.attn.to_{}.lora_{}.weight"


def lora(path, value=0.01):
    draw = torch.Generator().manual_seed(0)
    files.save(path, {NAMES.format(one, half): value * torch.randn(4, 4, generator=draw)
                      for one in "qkv" for half in "AB"})  # fmt: skip
    return path


def run(*words):
    try:
        return cli.main(["export", *map(str, words)])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def trained(tmp_path):
    one = SegformerDetector(SegformerConfig(), seed=1)
    save_detector(one, tmp_path / "run/detector", {"data": ["labels"]})
    return tmp_path / "run"


@pytest.fixture
def pushed(monkeypatch):
    """The folders that were uploaded."""
    calls = []
    monkeypatch.setattr(hub.huggingface_hub, "get_token", lambda: "hf_a_token")
    for program in (treat.export, detector.export):
        monkeypatch.setattr(program, "push", lambda folder, *_: calls.append(folder))
    return calls


def test_a_detector_is_known_by_its_run(trained, tmp_path, pushed, capsys):
    words = ("--run", trained, "--out", tmp_path / "out", "--formats", "transformers")
    assert not run(*words, "--push", "me/x")
    assert load_detector(tmp_path / "out").config == SegformerConfig()
    assert "# DiffDoctor artifact detector" in (tmp_path / "out/README.md").read_text()
    assert pushed == [tmp_path / "out"]
    assert run(*words, "--merge") == 2
    assert "is a detector, for which --merge means nothing" in capsys.readouterr().err


def test_an_adapter_is_known_by_its_file(tmp_path, pushed, capsys):
    path = lora(tmp_path / "lora.safetensors")
    words = ("--run", path, "--out", tmp_path / "out", "--dtype", "fp32")
    assert run(*words, "--formats", "onnx") == 2
    assert "is an adapter, for which --formats means nothing" in capsys.readouterr().err
    assert not run(*words, "--push", "me/x") and pushed == [tmp_path / "out"]


def test_nothing_unsound_is_pushed(tmp_path, pushed, capsys, monkeypatch):
    words = ("--run", lora(tmp_path / "lora.safetensors"), "--out", tmp_path / "out")
    monkeypatch.setattr(treat.export.verify, "code", lambda reports, readers: 1)
    assert run(*words, "--push", "me/x") == 2
    assert "not every reader would load it whole" in capsys.readouterr().err and not pushed
    lora(tmp_path / "lora.safetensors", float("nan"))
    assert run(*words, "--push", "me/x") == 2
    assert "not finite" in capsys.readouterr().err and not pushed


def test_a_whole_demo_is_told_apart(tmp_path, capsys):
    (tmp_path / "demo.json").write_text("{}")
    assert run("--run", tmp_path, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/adapter or {tmp_path}/detector" in "".join(said.splitlines())


def test_without_a_token_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.huggingface_hub, "get_token", lambda: None)
    path = lora(tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="no token"):
        treat.export.main(treat.export.Config(run=path, out=tmp_path / "out", push="me/x"))
    assert not (tmp_path / "out").exists()
