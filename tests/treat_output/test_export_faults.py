"""Exports that are stopped, wrong or run into one another: nothing is lost, nothing lies."""

import json
import os

import pytest
import safetensors.torch
import torch

from core import storage
from core.errors import UserError
from tests.treat_output import lora_files as files
from tests.treat_output.merging import World
from treat import export
from treat.adapter import read_adapter


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return World("flux", tmp_path_factory.mktemp("flux"))


def test_ctrl_c_within_a_write_leaves_nothing_in_the_way(flux, tmp_path, monkeypatch):
    def stop(handle):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage.primitives, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            flux.export(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out/.README.md.7.tmp").write_text("as SIGKILL leaves it")
    (tmp_path / "out/.DS_Store").write_text("a file manager's")
    flux.export(tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {".DS_Store", export.CARD, export.WEIGHTS}


def test_no_card_ever_stands_over_older_weights(flux, tmp_path, monkeypatch):
    out = flux.export(tmp_path / "out")
    write = export.write_atomic

    def stop(path, content):
        if path.name == export.WEIGHTS:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(export, "write_atomic", stop)
        with pytest.raises(KeyboardInterrupt):
            flux.export(out, title="another")
    assert not (out / export.WEIGHTS).exists()
    flux.export(out, title="another")
    assert (out / export.WEIGHTS).exists()


def test_two_exports_do_not_fill_one_folder(flux, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        storage.alone(tmp_path / "out/.export.lock", "busy"),
        pytest.raises(UserError, match="another export is writing"),
    ):
        flux.export(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    flux.export(tmp_path / "out")


def test_modules_that_the_base_has_not_are_told(flux, tmp_path):
    far = {n.replace("transformer_blocks.0", "transformer_blocks.77"): t
           for n, t in flux.state.items()}  # fmt: skip
    path = files.save(tmp_path / "far.safetensors", far)
    with pytest.raises(UserError, match=r"not every reader would load it whole.*--base "):
        flux.export(tmp_path / "out", run=path)


def test_an_out_that_is_a_link_or_goes_up(flux, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    flux.export(tmp_path / "link", merge=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/model_index.json").is_file()
    flux.export(tmp_path / "dangling")
    assert (tmp_path / "later" / export.WEIGHTS).is_file()
    flux.export(tmp_path / "new/../up", merge=True)
    assert (tmp_path / "up/model_index.json").is_file()


def test_the_current_folder_is_not_replaced(flux, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="current folder"):
        flux.export(tmp_path, merge=True)
    assert os.listdir(tmp_path) == []


def test_a_merge_at_a_strength_that_drowns_the_weights_is_told(flux, tmp_path, capsys):
    flux.export(tmp_path / "usual", merge=True)
    assert "warning" not in capsys.readouterr().out
    flux.export(tmp_path / "out", merge=True, scale=1e4)
    assert "warning: the change of" in capsys.readouterr().out


def test_the_step_is_said_and_a_sum_has_no_runs_settings(flux, tmp_path, capsys):
    said = {"diffdoctor.step": "40"}
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(flux.state, path, metadata=said)
    flux.export(tmp_path / "out", run=path)
    assert "of step 40, " in capsys.readouterr().out
    flux.export(tmp_path / "sum", also=(f"{flux.other}=1",))
    with safetensors.safe_open(tmp_path / "sum" / export.WEIGHTS, framework="pt") as file:
        assert "diffdoctor.config_sha256" not in file.metadata()


# What diffusers would make of a foreign header

PAIR = {"x.lora_A.weight": torch.ones(4, 4), "x.lora_B.weight": torch.ones(4, 4)}


def headed(path, settings, tensors=None):
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    safetensors.torch.save_file(tensors or PAIR, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("settings", "scale"),
    [({"r": 4}, 2.0), ({"r": 4, "lora_alpha": 4}, 1.0), ({"target_modules": ["x"]}, 1.0)],
)
def test_what_is_unsaid_is_pefts(tmp_path, settings, scale):
    found = read_adapter(headed(tmp_path / "a.safetensors", settings))
    assert torch.equal(found.tensors["x.lora_B.weight"], scale * torch.ones(4, 4))


def test_a_rank_that_the_tensors_have_not(tmp_path):
    path = headed(tmp_path / "a.safetensors", {"r": 8, "lora_alpha": 16})
    with pytest.raises(UserError, match=r"says rank 8 and its tensors have \[4\]"):
        read_adapter(path)


def test_one_module_under_two_prefixes(tmp_path):
    both = {f"{prefix}{name}": t.clone() for prefix in ("transformer.", "unet.")
            for name, t in PAIR.items()}  # fmt: skip
    with pytest.raises(UserError, match="two prefixes"):
        read_adapter(headed(tmp_path / "a.safetensors", {}, both))


def test_the_cure_of_other_names_is_named(tmp_path):
    path = files.save(tmp_path / "a.safetensors", files.sound("kohya-unet"))
    with pytest.raises(UserError, match="diffdoctor convert .*--to peft"):
        read_adapter(path)
