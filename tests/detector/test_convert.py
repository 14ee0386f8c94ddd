"""The same network in every layout gives the same logits; what does not fit is named."""

import contextlib
import json
import os
import pickle
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from core.config import run_program
from core.errors import UserError
from core.seeds import generator
from core.storage import sha256_file
from detector import convert, pickled
from detector.key_layouts import transformers_to_smp
from detector.pickled import read_pickled
from detector.segformer import (
    VARIANTS,
    SegformerConfig,
    SegformerDetector,
    transformers_config,
)
from detector.storage import load_detector, read_description

OLD = (
    (r"segformer\.stages\.(\d)\.patch_embeddings", r"segformer.encoder.patch_embeddings.\1"),
    (r"segformer\.stages\.(\d)\.layer_norm", r"segformer.encoder.layer_norm.\1"),
    (r"segformer\.stages\.(\d)\.blocks\.(\d+)", r"segformer.encoder.block.\1.\2"),
    (r"layernorm_before", "layer_norm_1"),
    (r"layernorm_after", "layer_norm_2"),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attention.self.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attention.self.layer_norm"),
    (r"mlp\.fc", "mlp.dense"),
    (r"linear_projections", "linear_c"),
)
"""From transformers 5 to 4, written down by hand: the program's own map goes the other way."""


def old_names(state, prefix=""):
    renamed = {}
    for name, tensor in state.items():
        for pattern, words in OLD:
            name = re.sub(pattern, words, name)
        renamed[prefix + name] = tensor
    return renamed


def network(variant, seed=3):
    detector = SegformerDetector(SegformerConfig(variant=variant), seed=seed).eval()
    with torch.no_grad():  # away from the start values, or swapped biases would not show
        for name, tensor in detector.network.state_dict().items():
            if tensor.is_floating_point():
                tensor += 0.02 * torch.rand(tensor.shape, generator=generator(len(name)))
    return detector


@pytest.fixture(scope="module")
def own():
    return network("mit_b0")


def smp_state(detector):
    smp = SegformerDetector(SegformerConfig(backend="smp", variant="mit_b0"))
    return transformers_to_smp(detector.network.state_dict(), list(smp.network.state_dict()))


def write_released(detector, folder):
    torch.save(old_names(detector.network.state_dict()), folder / "ad_pytorch_model.bin")
    return folder / "ad_pytorch_model.bin"


def write_wrapped(detector, folder):
    state = old_names(detector.network.state_dict(), "module.model.")
    torch.save({"epoch": 3, "state_dict": state}, folder / "last.pth")
    return folder / "last.pth"


def write_legacy(detector, folder):
    """Before torch 1.6: no zip, nothing that can be mapped."""
    state = old_names(detector.network.state_dict())
    torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
    return folder / "old.bin"


def write_smp(detector, folder):
    torch.save(smp_state(detector), folder / "smp.pth")
    return folder / "smp.pth"


def write_five(detector, folder):
    config = transformers_config(detector.config.variant).to_json_string(use_diff=True)
    (folder / "config.json").write_text(config)
    state = {name: t.contiguous() for name, t in detector.network.state_dict().items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


def write_four(detector, folder):
    write_five(detector, folder)
    (folder / "model.safetensors").unlink()
    torch.save(old_names(detector.network.state_dict()), folder / "pytorch_model.bin")
    return folder


WRITERS = {
    "released": (write_released, "transformers 4"),
    "wrapped": (write_wrapped, "transformers 4"),
    "legacy": (write_legacy, "transformers 4"),
    "smp": (write_smp, "smp"),
    "folder of 5": (write_five, "transformers 5"),
    "folder of 4": (write_four, "transformers 4"),
}


@pytest.fixture
def forked(monkeypatch):
    """The child that reads is a fork of this process: it need not load torch again."""
    given = SimpleNamespace(run=fork, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(pickled, "subprocess", given)


def fork(words, **_):
    """`subprocess.run` of `python -P -m detector.pickled SOURCE TARGET`."""
    assert words[1:4] == ["-P", "-m", "detector.pickled"]
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                with contextlib.redirect_stderr(said):
                    code = pickled.main(*map(Path, words[4:]))
                said.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return subprocess.CompletedProcess(words, code, stderr=said.read())


def run(source, out, *words):
    run_program(convert.main, convert.Config, [str(source), "--out", str(out), *words])
    return out


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_gives_the_same_logits(own, tmp_path, name, capsys):
    write, layout = WRITERS[name]
    (tmp_path / "source").mkdir()
    source = write(own, tmp_path / "source")
    out = run(source, tmp_path / "out", "--input-size", "0", "--licence", "MIT")
    images = torch.rand(2, 3, 64, 96, generator=generator(1))
    found = load_detector(out)
    with torch.no_grad():
        ours, theirs = own.logits(images), found.logits(images)
    assert ours.shape == (2, 1, 16, 24) and ours.std() > 1e-3
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    said = read_description(out)
    assert said.config.variant == "mit_b0" and said.config.input_size is None
    weights = source if source.is_file() else next(source.glob("*model.*"))
    told = {"file": weights.name, "sha256": sha256_file(weights), "layout": layout}
    assert said.card["converted"] == told
    assert all(word in said.card["licence"] for word in ("Apache-2.0", "MIT", "NVIDIA"))
    assert f"layout of {layout}" in capsys.readouterr().out


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("variant", ["nano", "mit_b1"])
def test_the_variant_is_read_from_the_shapes(tmp_path, variant):
    detector = SegformerDetector(SegformerConfig(variant=variant))
    said = read_description(run(write_released(detector, tmp_path), tmp_path / "out"))
    assert said.config.variant == variant
    assert said.config.input_size == (None if variant == "nano" else 512)


def test_every_variant_has_a_shape_of_its_own():
    shapes = [(v["hidden_sizes"], v["depths"], v["decoder_hidden_size"]) for v in VARIANTS.values()]
    assert all(shapes.count(shape) == 1 for shape in shapes)


@pytest.mark.usefixtures("forked")
def test_the_same_weights_may_be_converted_again_and_no_others(own, tmp_path):
    source = write_released(own, tmp_path)
    out = run(source, tmp_path / "out")
    run(source, out)
    with pytest.raises(SystemExit):
        run(write_smp(own, tmp_path), out)
    (out / "letter.txt").write_text("dear")
    with pytest.raises(SystemExit):
        run(source, out)


def _without(state):
    del state["segformer.encoder.block.1.0.mlp.dense1.bias"]


def _with(state):
    state["segformer.encoder.block.1.0.mlp.dense3.bias"] = torch.zeros(1)


def _more(state):
    state["decode_head.classifier.scale"] = torch.zeros(1)


def _wide(state):
    state["decode_head.classifier.weight"] = torch.zeros(150, 256, 1, 1)


def _shallow(state):
    for name in list(state):
        if name.startswith("segformer.encoder.block.3.1."):
            del state[name]


def _broken(state):
    state["decode_head.classifier.bias"][0] = float("nan")


def _bare(state):
    state["segformer.encoder.patch_embeddings.0.proj.weight"] = torch.tensor(1.0)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("change", "words", "cure"),
    [
        (_without, [], "segformer.stages.1.blocks.0.mlp.fc1.bias"),
        (_with, [], "segformer.encoder.block.1.0.mlp.dense3.bias"),
        (_more, [], "decode_head.classifier.scale"),
        (_wide, [], r"\(150, 256, 1, 1\), a mit_b0 has \(1, 256, 1, 1\)"),
        (_shallow, [], "--variant"),
        (_shallow, ["--variant", "mit_b0"], "segformer.stages.3.blocks.1"),
        (lambda state: None, ["--variant", "mit_b1"], "segformer.stages.0.patch_embeddings"),
        (lambda state: None, ["--variant", "mit_b9"], "mit_b5"),
        (_bare, [], "patch_embeddings.0.proj.weight' of .* is a single number"),
        (_broken, [], "'decode_head.classifier.bias' of .* is not finite"),
        (lambda state: state.clear(), [], "no weights by name"),
        (lambda state: state.update(note="dear"), [], "holds more than weights"),
    ],
)
def test_what_does_not_fit_is_named(own, tmp_path, capsys, change, words, cure):
    state = {name: t.clone() for name, t in old_names(own.network.state_dict()).items()}
    change(state)
    torch.save(state, tmp_path / "weights.bin")
    refused(tmp_path / "weights.bin", tmp_path / "out", capsys, cure, *words)


def refused(source, out, capsys, cure, *words):
    with pytest.raises(SystemExit) as stop:
        run(source, out, *words)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert re.search(cure, said), said
    assert not out.exists()


class Payload:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def test_a_payload_does_not_run(tmp_path, capsys):
    sentinel = tmp_path / "ran"
    for number, write in enumerate((torch.save, lambda x, p: p.write_bytes(pickle.dumps(x)))):
        path = tmp_path / f"{number}.bin"
        write({"segformer.encoder.x": Payload(sentinel)}, path)
        refused(path, tmp_path / "out", capsys, "holds more than tensors")
    assert not sentinel.exists()
    pickle.loads(path.read_bytes())  # noqa: S301 the control
    assert sentinel.exists()


def test_what_lies_in_the_current_folder_is_not_run(own, tmp_path, monkeypatch):
    """A module there of the name of one that the child imports."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "safetensors.py").write_text("open('ran', 'w').close()\nraise SystemExit(1)\n")
    path = write_released(own, tmp_path)
    monkeypatch.chdir(here)
    assert read_pickled(path)
    assert not (here / "ran").exists()


@pytest.mark.usefixtures("forked")
def test_damaged_files_are_named(own, tmp_path, capsys):
    whole = write_released(own, tmp_path).read_bytes()
    expanded = {"segformer.encoder.x": torch.zeros(1).expand(10**12)}
    torch.save(expanded, tmp_path / "bomb.bin")
    cases = {
        "cut.bin": (whole[:-1000], "damaged"),
        "empty.bin": (b"", "damaged"),
        "text.pth": (b"dear", "damaged"),
        "cut.safetensors": (b"\xff" * 100, "damaged"),
        "weights.txt": (b"dear", "is no .bin"),
        "bomb.bin": (None, "grow beyond"),
    }
    for name, (content, cure) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, tmp_path / "out", capsys, cure)
    refused(tmp_path / "none.bin", tmp_path / "out", capsys, "does not exist")


def test_a_folder_must_be_of_this_network(own, tmp_path, capsys):
    (tmp_path / "five").mkdir()
    folder = write_five(own, tmp_path / "five")
    said = json.loads((folder / "config.json").read_text())
    for change, cure in (
        ({"num_attention_heads": [1, 2, 4, 8]}, "num_attention_heads"),
        ({"model_type": "beit"}, "is a beit"),
    ):
        (folder / "config.json").write_text(json.dumps(said | change))
        refused(folder, tmp_path / "out", capsys, cure)
    (folder / "config.json").write_text("{")
    refused(folder, tmp_path / "out", capsys, "damaged")
    (folder / "model.safetensors").unlink()
    refused(folder, tmp_path / "out", capsys, "has no model.safetensors")


def test_an_unknown_network_is_no_segformer(tmp_path):
    with pytest.raises(UserError, match=r"unexpected tensor 'conv1\.weight'"):
        convert.canonical({"conv1.weight": torch.zeros(1)}, tmp_path)
