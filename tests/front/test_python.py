"""docs/python.md: its blocks run, one after the other; and what `run` and `settings` refuse."""

import re
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import diffdoctor
from core.run import PAUSED
from diffdoctor.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs/python.md").read_text()


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "miniature").symlink_to(ROOT / "miniature")
    world, before = {}, torch.is_grad_enabled()
    for block in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL):
        exec(compile(block, "python.md", "exec"), world)
    said = capsys.readouterr().out
    (promised,) = re.findall(r"print\(error\)  # (.*)", DOC)
    assert promised in said
    runs = tmp_path / "runs/python"
    assert len(list((runs / "diagnosis").glob("**/*.png"))) >= 16
    assert Image.open(runs / "overlay.png").size == (64, 64)
    own, exported = (
        load_file(runs / name / "pytorch_lora_weights.safetensors") for name in ("own", "lora")
    )
    for state in (own, exported):
        assert any(tensor.abs().max() > 0 for name, tensor in state.items() if "lora_B" in name)
    assert torch.is_grad_enabled() == before


def test_settings_come_as_from_a_file(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("steps: 7\nlearning_rate: 0.5\n")
    given = {"prompts": "prompts.txt", "offline": "photographs", "out": "run"}
    made = diffdoctor.settings("treat", config=["flux-24gb", mine], steps=9, **given)
    assert (made.steps, made.learning_rate, made.out) == (9, 0.5, Path("run"))
    preset = diffdoctor.settings("treat", config="flux-24gb", **given)
    assert (made.quantise, preset.quantise, preset.learning_rate != 0.5) == ("int8", "int8", True)


def test_what_has_a_place_may_stand_there(tmp_path):
    made = diffdoctor.settings("compare", "real", ["one", "two"], features="features")
    assert (made.real, made.generated) == (Path("real"), (Path("one"), Path("two")))
    for same in (
        diffdoctor.settings("compare", "real", "one", "two", features=Path("features")),
        diffdoctor.settings(
            "compare", real=Path("real"), generated=("one", Path("two")), features="features"
        ),
    ):
        assert same == made
    alone = diffdoctor.settings("compare", "real", "one", features="features")
    assert alone.generated == (Path("one"),)
    exported = {"run": "run", "out": "out"}
    assert diffdoctor.settings("export", formats="onnx", **exported).formats == ("onnx",)
    assert diffdoctor.settings("export", formats=None, **exported).formats is None


def bad_yaml():
    path = Path(tempfile.mkdtemp()) / "bad.yaml"
    path.write_text("stepz: 3\n")
    return path


REFUSED = {
    "did you mean 'treat'": lambda: diffdoctor.run("treats"),
    "unknown name 'step' in the call": lambda: diffdoctor.run("treat", step=3),
    "'base' is missing in the call": lambda: diffdoctor.run("treat"),
    "'steps' in .*flux-24gb.yaml, the call is 0": lambda: diffdoctor.run(
        "treat", config="flux-24gb", prompts="a", out="b", steps=0
    ),
    "no file or preset flux-25gb": lambda: diffdoctor.run("treat", config="flux-25gb"),
    "unknown name 'stepz' in .*bad.yaml; did you mean 'steps'": lambda: diffdoctor.run(
        "treat", config=["flux-24gb", bad_yaml()]
    ),
    "gives 2 by place; this command takes only path": lambda: diffdoctor.run("verify", "a", "b"),
    "this command takes nothing by place": lambda: diffdoctor.run("treat", "a"),
    "'path' by place and by name": lambda: diffdoctor.run("verify", "a", path="b"),
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_mistakes_are_sentences(sentence):
    with pytest.raises(diffdoctor.UserError, match=sentence):
        REFUSED[sentence]()


@pytest.mark.parametrize("found, code", [(None, 0), (PAUSED, PAUSED)])
def test_the_exit_code_comes_back(monkeypatch, found, code):
    asked = []
    monkeypatch.setattr("treat.verify.main", lambda config: asked.append(config.path) or found)
    assert diffdoctor.run("verify", "adapter.safetensors") == code
    assert asked == [Path("adapter.safetensors")]


def test_every_command_can_be_asked_for():
    """Its settings by the same names as on the command line, or refused by them."""
    for name in COMMANDS:
        with pytest.raises(
            diffdoctor.UserError, match="unknown name 'no_such_setting' in the call"
        ):
            diffdoctor.settings(name, no_such_setting=1)


def test_names_are_listed_before_they_are_looked_up():
    assert set(diffdoctor.API) <= set(dir(diffdoctor))
    for name, module in diffdoctor.API.items():
        assert getattr(getattr(diffdoctor, name), "__module__", module) == module


def test_the_readmes_block_is_python():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks and all(compile(block, "README.md", "exec") for block in blocks)
