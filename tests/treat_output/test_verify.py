"""`diffdoctor verify`: what sound files give, what is held against a base, exit codes."""

import json

import pytest
import safetensors.torch
import torch

from core.errors import UserError
from diffdoctor import cli
from tests.base_models.families import CASES
from tests.chain import with_adapters
from tests.treat_output import lora_files as files
from treat import convert, export, verify
from treat.lora import lora_state
from treat.lora_files.base import Base
from treat.lora_files.readers import READERS

PU, PT, KU = "peft-unet", "peft-transformer", "kohya-unet"
SOUND = [PT, KU, "kohya-sgm", "kohya-flux", "comfy-flux", "down-transformer"]


def codes(path, base=None, readers=verify.USUAL):
    return {one.code for one in verify.examine(path, base, readers).findings}


@pytest.mark.parametrize("naming", SOUND)
def test_a_sound_file_gives_no_finding(tmp_path, naming):
    report = verify.examine(files.save(tmp_path / "a.safetensors", files.sound(naming)))
    assert report.findings == [] and report.content.naming == naming
    served = [one.reader for one in report.verdicts if one.whole]
    assert set(verify.USUAL) <= set(served)
    assert ("sd-scripts" in served) == naming.startswith("kohya")
    assert verify.code([report], verify.USUAL) == 0


# Against a base

AGAINST = {
    "a module that it has not": "base-module",
    "sides that it has not": "base-shape",
    "another network": "base-family",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    for case in ("sdxl", "flux"):
        CASES[case].pipeline().save_pretrained(folder / case)
    return folder


def fitting(base, prefix, modules):
    shapes = {name: base.shapes[name] for name in modules}
    return {
        f"{prefix}{name}.lora_{half}.weight": one
        for name, (out, wide, *_) in shapes.items()
        for half, one in zip("AB", files.pair(0, out, wide), strict=True)
    }


def test_against_the_base(bases, tmp_path):
    for case, prefix, other in (("sdxl", "unet.", "flux"), ("flux", "transformer.", "sdxl")):
        base = Base(str(bases / case))
        modules = [name for name in base.shapes if name.endswith(("to_q", "to_k", "net.2"))]
        good = fitting(base, prefix, modules)
        path, readers = tmp_path / "lora.safetensors", ("diffusers",)
        assert codes(files.save(path, good), base, readers) == set()
        wrong = codes(path, Base(str(bases / other)), readers)
        assert wrong == {AGAINST["another network"]}
        lost = {n.replace("blocks.0.", "blocks.7.", 1): one for n, one in good.items()}
        assert codes(files.save(path, lost), base, readers) == {AGAINST["a module that it has not"]}
        wide = {n: torch.cat([t, t], 1) if "lora_A" in n else t for n, t in good.items()}
        assert codes(files.save(path, wide), base, readers) == {AGAINST["sides that it has not"]}


def test_kohyas_names_against_the_base(bases, tmp_path):
    base, path = Base(str(bases / "sdxl")), tmp_path / "lora.safetensors"
    good = fitting(base, "unet.", [name for name in base.shapes if ".to_" in name])
    halves = (("lora_A", "lora_down"), ("lora_B", "lora_up"))
    named = {}
    for name, tensor in good.items():
        module, half, _ = name.removeprefix("unet.").rsplit(".", 2)
        named[f"lora_unet_{module.replace('.', '_')}.{dict(halves)[half]}.weight"] = tensor
    assert codes(files.save(path, named), base) == set()
    lost = {n.replace("attn1", "attn3"): one for n, one in named.items()}
    assert codes(files.save(path, lost), base) == {"base-module"}


def test_fused_names_against_the_base(bases, tmp_path):
    base, path = Base(str(bases / "flux")), tmp_path / "lora.safetensors"
    assert codes(files.save(path, files.fused("lora_unet_")), base) == {"base-shape"}
    a, b = files.pair(0, 3 * 16, 16)
    place = "lora_unet_double_blocks_0_img_attn_qkv"
    good = {f"{place}.lora_down.weight": a, f"{place}.lora_up.weight": b}
    assert codes(files.save(path, good), base) == set()
    lost = {n.replace("blocks_0", "blocks_9"): one for n, one in good.items()}
    assert codes(files.save(path, lost), base) == {"base-module"}


# The program


def run(*words):
    try:
        return cli.main(["verify", *map(str, words)])
    except SystemExit as stop:
        return stop.code


def test_exit_codes_tables_and_json(tmp_path, capsys):
    files.save(tmp_path / "sound.safetensors", files.sound(KU))
    assert run(tmp_path / "sound.safetensors", "--json", tmp_path / "a.json") == 0
    shown = capsys.readouterr().out
    assert "no findings" in shown and all(reader in shown for reader in READERS)
    (found,) = json.loads((tmp_path / "a.json").read_text())
    assert found["naming"] == KU and found["readable"] and found["findings"] == []
    assert found["readers"]["ComfyUI"]["loaded"] == len(files.UNET)
    broken = {n: t * torch.nan if "lora_up" in n else t for n, t in files.sound(KU).items()}
    files.save(tmp_path / "nan.safetensors", broken)
    assert run(tmp_path / "nan.safetensors") == 1
    assert "not-finite" in capsys.readouterr().out
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert run(tmp_path / "torn.safetensors") == 2
    assert run(tmp_path / "none.safetensors") == 2
    assert "check the path" in capsys.readouterr().err


def test_one_file_of_a_folder_has_to_serve_each_reader(tmp_path, capsys):
    files.save(tmp_path / "pytorch_lora_weights.safetensors", files.sound(PU))
    assert run(tmp_path) == 1
    assert run(tmp_path, "--readers", "diffusers") == 0
    files.save(tmp_path / "comfyui_lora.safetensors", files.sound(KU))
    assert run(tmp_path) == 0
    assert run(tmp_path, "--readers", "sd-scripts") == 0
    capsys.readouterr()


@pytest.mark.parametrize("case", ["flux", "sdxl", "sd", "kolors", "sd3"])
def test_what_the_export_writes_is_sound_against_its_base(case, tmp_path, capsys):
    CASES[case].pipeline().save_pretrained(tmp_path / "base")
    state = lora_state(with_adapters(CASES[case].model()).network)
    prefix = "transformer." if case in ("flux", "sd3") else "unet."
    files.save(tmp_path / "trained.safetensors", {prefix + n: t for n, t in state.items()})
    names = {"flux": "schnell", "sd": "sd1"}
    config = {"run": tmp_path / "trained.safetensors", "out": tmp_path / "lora"}
    export.main(export.Config(architecture=names.get(case, case), **config))
    # Forge has SD 3's names switched off.
    readers = ["diffusers", "ComfyUI"] if case == "sd3" else ["diffusers", "ComfyUI", "Forge"]
    words = ["--base", tmp_path / "base", "--readers", *readers, "--json", tmp_path / "a.json"]
    assert run(tmp_path / "lora", *words) == 0
    for found in json.loads((tmp_path / "a.json").read_text()):
        assert {one["code"] for one in found["findings"]} <= {"dropped"}
        assert found["modules"] == len(state) // 2
    capsys.readouterr()


@pytest.mark.parametrize(
    "name, what",
    [
        ("model_index.json", "whole pipeline"),
        ("detector.json", "a detector"),
        ("run.json", "a run"),
        ("manifest.json", "a checkpoint"),
    ],
)
def test_a_folder_of_something_else_is_named(tmp_path, name, what):
    (tmp_path / name).write_text("{}")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=what):
        verify.main(verify.Config(path=tmp_path))
    (tmp_path / "x.safetensors").rename(tmp_path / "pytorch_lora_weights.safetensors")
    assert verify.main(verify.Config(path=tmp_path))  # looked at, and found wanting


def test_no_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="check the path"):
        verify.files(tmp_path)


def test_a_file_that_may_not_be_read_is_a_sentence(tmp_path, monkeypatch):
    path = files.save(tmp_path / "a.safetensors", files.sound(PT))
    assert verify.files(path) == [path]
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for read in (verify.files, convert.read):
        with pytest.raises(UserError, match="may not be read: change its permissions"):
            read(path)
