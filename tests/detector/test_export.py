"""What is exported gives the detector's own numbers, also where this project is not there."""

import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

import detector.export as export
from core.errors import UserError
from detector import export_graph
from detector.segformer import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VARIANTS,
    SegformerConfig,
    SegformerDetector,
    upsample,
)
from detector.storage import digest, load_detector, save_detector

CARD = {
    "data": ["labels"],
    "samples": {"train": {"number": 12, "categories": {"hand": 7, "face": 5}}},
    "held_out": {"images": 4, "pixel_ap": 0.5, "calibration_error": 0.02},
}
CONFIGS = {
    "nano": SegformerConfig(),
    "enlarged": SegformerConfig(variant="mit_b0", upscale=4, input_size=24),
    "smp": SegformerConfig(backend="smp", variant="mit_b0", input_size=64),
    "smp, another encoder": SegformerConfig(backend="smp", variant="resnet18"),
}
ONNX = {"nano", "smp"}
"""Those that are written as ONNX too."""
QUICK = ("nano", "enlarged", "smp")
"""To trace a network takes seconds."""
WORLDS = [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS if n not in QUICK)]
every = pytest.mark.parametrize("world", WORLDS, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """One block a stage: every operation of a network, and half as much to trace."""
    depths = {"depths": [1, 1, 1, 1]}
    with pytest.MonkeyPatch.context() as patched:
        for name in ("nano", "mit_b0"):
            patched.setitem(VARIANTS, name, VARIANTS[name] | depths)
        mit_b0 = smp.encoders.encoders["mit_b0"]
        patched.setitem(mit_b0, "params", mit_b0["params"] | depths)
        yield


def lively(config):
    """Random weights whose map is not the prior everywhere."""
    one = SegformerDetector(config, seed=3).eval()
    draw = torch.Generator().manual_seed(0)
    head = one.network.segmentation_head[0] if config.backend == "smp" else (
        one.network.decode_head.classifier)  # fmt: skip
    head.weight.data = torch.randn(head.weight.shape, generator=draw)
    return one


def written(folder, config, **options):
    save_detector(lively(config), folder / "run/detector", CARD)
    given = {"formats": ("transformers", "program")} | options
    export.main(export.Config(run=folder / "run", out=folder / "out", **given))
    return load_detector(folder / "run"), folder / "out"


@pytest.fixture(scope="module")
def world(request, tmp_path_factory):
    name = request.param
    onnx = ["onnx"] if name in ONNX and not export_graph.missing_for_onnx() else []
    formats = ("transformers", "program", *onnx)
    return written(tmp_path_factory.mktemp("d"), CONFIGS[name], formats=formats)


@every
@torch.no_grad()
def test_the_cards_snippet_draws_the_map_without_this_project(world, tmp_path):
    detector, out = world
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) == 15
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (tmp_path / "detector.pt2").write_bytes((out / "detector.pt2").read_bytes())
    code += """
import sys
np.save("heat.npy", heat.numpy())
assert not {"detector", "core", "treat", "transformers"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    here = detector(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0, 0]
    there = torch.from_numpy(np.load(tmp_path / "heat.npy"))
    assert here.std() > 1e-3 and torch.allclose(here, there, atol=1e-5)
    assert (tmp_path / "artifacts.png").is_file()


@every
@torch.no_grad()
def test_plain_transformers_opens_its_folder(world):
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

    detector, out = world
    if detector.config.variant == "resnet18":
        assert not (out / "transformers").exists()  # it has no such network
        return
    plain = SegformerForSemanticSegmentation.from_pretrained(out / "transformers").eval()
    read = SegformerImageProcessor.from_pretrained(out / "transformers")
    assert list(read.image_mean) == list(IMAGENET_MEAN) and not read.do_resize
    assert list(read.image_std) == list(IMAGENET_STD)
    images = torch.rand(1, 3, 64, 64)
    x = images
    if detector.config.upscale > 1:
        x = torch.nn.functional.interpolate(x, scale_factor=4.0, mode="bilinear")
    seen = plain((x - detector.mean) / detector.std).logits
    picture = (images * 255).round().byte()
    fed = read(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(fed, (picture / 255 - detector.mean) / detector.std)
    torch.testing.assert_close(seen, detector.logits_at(images), atol=1e-4, rtol=1e-4)
    assert plain.config.id2label == {0: "artifact"}


@every
def test_the_program_holds_no_pickle(world):
    with zipfile.ZipFile(world[1] / "detector.pt2") as archive:
        for entry in archive.infolist():
            assert not entry.filename.endswith(".pkl")
            if entry.filename.endswith(".pt"):
                assert entry.file_size == 0, entry.filename


@every
def test_own_files_are_the_runs_own(world):
    detector, out = world
    assert digest(out) and load_detector(out).config == detector.config
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_detector(out)(images), detector(images))


@pytest.mark.parametrize(
    "world", [one for one in WORLDS if getattr(one, "values", [one])[0] in ONNX], indirect=True
)
@torch.no_grad()
def test_onnx_gives_the_same_logits(world):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    import onnxruntime

    detector, out = world
    session = onnxruntime.InferenceSession(out / "detector.onnx")
    for batch, rows, columns in ((1, 2, 2), (3, 4, 5)):
        cell = detector.multiple
        images = torch.rand(batch, 3, rows * cell, columns * cell)
        heat, logits = session.run(["map", "logits"], {"images": images.numpy()})
        assert np.abs(logits - detector.logits_at(images).numpy()).max() <= 1e-4
        map = torch.sigmoid(upsample(detector.logits_at(images), images.shape[-2:]))
        assert np.abs(heat - map.numpy()).max() <= 1e-4
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "detector.json", "detector.onnx", "detector.pt2", "detector.safetensors",
        "transformers",
    ]  # fmt: skip


def test_without_onnx_one_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(export_graph, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxscript"):
        written(tmp_path, CONFIGS["nano"], formats=("onnx",))
    assert not (tmp_path / "out").exists()


def test_without_onnx_the_default_is_all_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_graph, "find_spec", lambda name: None)
    monkeypatch.setattr(export, "exported", lambda detector: "graph")
    for name in ("write_program", "write_onnx"):
        monkeypatch.setattr(export, name, lambda graph, detector, path: path.write_text(graph))
    _, out = written(tmp_path, CONFIGS["nano"], formats=None)
    assert {"transformers", "detector.pt2"} < {path.name for path in out.iterdir()}
    assert not (out / "detector.onnx").exists()
    said = [line for line in capsys.readouterr().out.splitlines() if "ONNX" in line]
    assert len(said) == 1 and "pip install onnx onnxscript" in said[0]


def test_the_card_tells_licence_data_calibration_and_categories(tmp_path):
    save_detector(lively(CONFIGS["nano"]), tmp_path / "run/detector", CARD)
    groups = {"hand": {"images": 7, "pixel_ap": 0.625, "calibration_error": 0.031, "iou": None}}
    said = {"detector": digest(tmp_path / "run"), "threshold": 0.5, "category": groups,
            "overall": {"all": {"images": 12, "pixel_ap": 0.5}}}  # fmt: skip
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(said))
    given = {"run": tmp_path / "run", "out": tmp_path / "out", "formats": ()}
    export.main(export.Config(**given, evaluation=path, license="apache-2.0", title="Hands"))
    text = (tmp_path / "out/README.md").read_text()
    for words in ("license: apache-2.0", "# Hands", "Apache-2.0", "hand 7, face 5", "Sets: labels",
                  "| category hand | 7 | 0.625 | - | - | 0.031 | - | - |", "ECE"):  # fmt: skip
        assert words in text, words
    assert str(tmp_path) not in text
    export.main(export.Config(**given))
    text = (tmp_path / "out/README.md").read_text()
    assert "held out in training" in text and "category hand" not in text
    path.write_text(json.dumps(said | {"detector": "of another"}))
    with pytest.raises(UserError, match="of another detector"):
        export.main(export.Config(**given, evaluation=path))
    path.write_text("{}")
    with pytest.raises(UserError, match="holds no detector's figures"):
        export.main(export.Config(**given, evaluation=path))


def test_nothing_of_others_is_overwritten_and_a_wrong_file_does_not_stay(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        written(tmp_path, CONFIGS["nano"])
    (tmp_path / "out/notes.txt").rename(tmp_path / "out/README.md")  # a name of ours, not our file
    (tmp_path / "out/transformers").mkdir()
    (tmp_path / "out/transformers/a.py").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        written(tmp_path, CONFIGS["nano"])
    assert (tmp_path / "out/transformers/a.py").is_file()
    assert (tmp_path / "out/README.md").read_text() == "mine"
    (tmp_path / "wrong.onnx").write_text("")
    with pytest.raises(UserError, match="was removed"):
        export_graph.compare(torch.zeros(1), torch.ones(1), tmp_path / "wrong.onnx", 1e-4)
    assert not (tmp_path / "wrong.onnx").exists()


def test_an_export_that_is_refused_leaves_the_earlier_one_whole(tmp_path):
    _, out = written(tmp_path, CONFIGS["nano"], formats=("transformers",))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    given = {"run": tmp_path / "run", "out": out, "formats": ()}
    with pytest.raises(UserError, match="holds no detector's figures"):
        export.main(export.Config(**given, evaluation=tmp_path / "none.json"))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    export.main(export.Config(**given))
    assert not (out / "transformers").exists()  # of the earlier one, no longer asked for
    with pytest.raises(UserError, match="lies in .*name another --out"):
        export.main(export.Config(run=out, out=out))


def test_a_detector_of_others_is_not_written_over(tmp_path):
    save_detector(lively(SegformerConfig()), tmp_path / "run/detector", CARD)
    save_detector(SegformerDetector(SegformerConfig(), seed=9), tmp_path / "other", CARD)
    before = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    with pytest.raises(UserError, match="holds other files"):
        export.main(export.Config(run=tmp_path / "run", out=tmp_path / "other", formats=()))
    assert {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()} == before


def test_a_stopped_export_is_made_by_the_same_command(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    save_detector(lively(SegformerConfig()), tmp_path / "run/detector", CARD)
    given = export.Config(run=tmp_path / "run", out=tmp_path / "out", formats=("transformers",))
    with monkeypatch.context() as patched:
        patched.setattr(export, "write_transformers", stop)
        with pytest.raises(KeyboardInterrupt):
            export.main(given)
    assert "Unfinished" in (tmp_path / "out/README.md").read_text()
    export.main(given)
    assert "Unfinished" not in (tmp_path / "out/README.md").read_text()
    assert (tmp_path / "out/transformers/model.safetensors").is_file()


def test_weights_that_are_no_numbers_are_not_exported(tmp_path):
    broken = lively(SegformerConfig())
    next(broken.parameters()).data[0] = float("nan")
    save_detector(broken, tmp_path / "run/detector", CARD)
    with pytest.raises(UserError, match="is not finite"):
        export.main(export.Config(run=tmp_path / "run", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
