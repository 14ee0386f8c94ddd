"""docs/downstream.md: its snippets run on tiny pipelines, its table has every naming."""

import re
import shlex
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from diffdoctor import cli
from tests.base_models.families import CASES
from tests.chain import with_adapters
from tests.treat_output import lora_files as files
from treat import export
from treat.lora import lora_state
from treat.lora_files.names import NAMINGS
from treat.lora_files.readers import READERS, SOURCES

TEXT = (Path(__file__).resolve().parents[2] / "docs/downstream.md").read_text()
BASES = {
    "black-forest-labs/FLUX.1-schnell": ("flux", "transformer.", "schnell"),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", "unet.", "sdxl"),
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(params=BASES)
def folder(request, tmp_path, monkeypatch):
    """A working folder with a base, an export in `lora`, prompts and another LoRA."""
    case, prefix, architecture = BASES[request.param]
    pipeline = CASES[case].pipeline()
    pipeline.save_pretrained(tmp_path / "base")
    state = lora_state(with_adapters(CASES[case].model()).network)
    source = {prefix + name: one for name, one in state.items()}
    files.save(tmp_path / "trained.safetensors", source)
    config = {"run": tmp_path / "trained.safetensors", "out": tmp_path / "lora", "dtype": "fp32"}
    export.main(export.Config(architecture=architecture, **config))
    other = {name: one * 0.5 for name, one in source.items()}
    files.save(tmp_path / "style.safetensors", other)
    (tmp_path / "prompts.txt").write_text("a hand\na face\n")
    monkeypatch.chdir(tmp_path)
    return request.param, tmp_path


def test_snippets_run(folder):
    base, path = folder
    ran = 0
    for source in blocks("python"):
        if base in source:
            exec(compile(source.replace(base, str(path / "base")), "downstream.md", "exec"), {})
            ran += 1
    pictures = sorted(one.name for one in path.glob("*.png"))
    expected = {
        "black-forest-labs/FLUX.1-schnell": (2, ["hand.png", "styled.png"]),
        "stabilityai/stable-diffusion-xl-base-1.0": (1, ["00000.png", "00001.png"]),
    }
    assert (ran, pictures) == expected[base]
    first, second = (Image.open(path / name).tobytes() for name in pictures)
    assert first != second


@pytest.mark.parametrize("folder", list(BASES)[:1], indirect=True)
def test_commands_run(folder, capsys):
    base, path = folder
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line.split("&&")[0].replace(base, str(path / "base")))
        if words[1] != "export":  # of a run: it is tested elsewhere
            assert cli.main(words[1:]) == 0
    assert (path / "again.safetensors").is_file()
    names = ("again.safetensors", "lora/pytorch_lora_weights.safetensors")
    kept = [safetensors.torch.load_file(path / name) for name in names]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    capsys.readouterr()


def test_every_naming_and_reader_is_told_of():
    assert all(f"`{naming}`" in TEXT for naming in NAMINGS)
    assert all(reader in TEXT for reader in READERS)
    for reader, source in SOURCES.items():
        commit = re.search(r"at (\w{7})", source)
        assert commit is None or commit[1] in TEXT, reader
    assert TEXT.count("**not run**") == len(READERS) - 1
