"""A detector comes back equal to the bit; what is wrong with its folder is said with its cure."""

import json

import pytest
import torch

from core.errors import UserError
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import DESCRIPTION, TENSORS, digest, load_detector, save_detector

CONFIGS = [
    SegformerConfig(),
    SegformerConfig(backend="smp", variant="mit_b0"),
    SegformerConfig(backend="smp", variant="resnet18"),
]


@pytest.fixture
def folder(tmp_path):
    return save_detector(SegformerDetector(SegformerConfig(), seed=1), tmp_path / "d", {"seed": 1})


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_is_exact(tmp_path, config):
    detector = SegformerDetector(config, seed=3).eval()
    loaded = load_detector(save_detector(detector, tmp_path / "d", {"data": "toy"}))
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(images), detector(images))
    assert not loaded.training and loaded.config == config


def test_what_smp_trained_transformers_reads(tmp_path):
    detector = SegformerDetector(CONFIGS[1], seed=3).eval()
    folder = save_detector(detector, tmp_path / "d", {})
    text = json.loads((folder / DESCRIPTION).read_text())
    text["config"]["backend"] = "transformers"
    (folder / DESCRIPTION).write_text(json.dumps(text))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(load_detector(folder)(images), detector(images), atol=1e-5, rtol=0)


def test_the_card_holds_licence_and_what_was_given(folder):
    card = json.loads((folder / DESCRIPTION).read_text())["card"]
    assert "Apache-2.0" in card["licence"] and card["seed"] == 1
    assert len(digest(folder)) == 64


def _flip_a_bit(folder):
    content = bytearray((folder / TENSORS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / TENSORS).write_bytes(bytes(content))


def _truncate(folder):
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-10])


def _edit(**changes):
    def edit(folder):
        text = json.loads((folder / DESCRIPTION).read_text())
        text["config"] |= changes.pop("config", {})
        (folder / DESCRIPTION).write_text(json.dumps(text | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "cure"),
    [
        (_flip_a_bit, "copy the folder again"),
        (_truncate, "copy the folder again"),
        (lambda f: (f / TENSORS).unlink(), "cannot read detector.safetensors"),
        (lambda f: (f / DESCRIPTION).unlink(), "cannot read detector.json"),
        (lambda f: (f / DESCRIPTION).write_text("{"), "damaged or of another program"),
        (_edit(config={"variant": "mit_b7"}), "mit_b7"),
        (_edit(config={"variant": "mit_b0"}), "does not hold a mit_b0"),
        (_edit(format="other"), "update diffdoctor"),
        (_edit(surprise=1), "surprise"),
    ],
)
def test_damage_is_named(folder, damage, cure):
    damage(folder)
    with pytest.raises(UserError, match=cure) as caught:
        load_detector(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="diffdoctor detector train"):
        load_detector(tmp_path / "none")


def test_damaged_header_with_a_matching_digest(folder):
    import hashlib

    (folder / TENSORS).write_bytes(b"\xff" * 64)
    _edit(sha256=hashlib.sha256(b"\xff" * 64).hexdigest())(folder)
    with pytest.raises(UserError, match="train it again"):
        load_detector(folder)
