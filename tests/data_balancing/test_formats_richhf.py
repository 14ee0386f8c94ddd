"""TFRecords without TensorFlow: bytes against independent constants and readers, and damage."""

import struct
import sys

import google_crc32c
import numpy as np
import pytest

from core.errors import UserError
from data_balancing.formats import FORMATS, richhf
from tests.data_balancing.sets import SETS, encoded, example, heat, picture, put, tfrecord
from tests.data_balancing.sets import masked as masked_bytes


def outcome(root, images) -> dict[str, str]:
    found = {}
    for entry in FORMATS["richhf"].read(root, images):
        try:
            entry.read()
            found[entry.name] = ""
        except UserError as error:
            found[entry.name] = str(error)
    return found


def bitwise(content: bytes) -> int:
    """crc32c by its polynomial, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("content", "crc"),
    [  # RFC 3720, B.4, and the check value of the CRC catalogue
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_the_checksum_is_the_standard_one(content, crc):
    assert google_crc32c.value(content) == bitwise(content) == crc
    assert richhf.masked(crc) == (((crc >> 15) | (crc << 17) % 2**32) + 0xA282EAD8) % 2**32


def test_our_records_are_read_by_tensorboard(tmp_path):
    stub = pytest.importorskip("tensorboard.compat.tensorflow_stub.pywrap_tensorflow")
    assert struct.pack("<I", stub.masked_crc32c(b"123456789")) == masked_bytes(b"123456789")
    path = put(tmp_path / "x.tfrecord", tfrecord(b"one", b"", b"three"))
    reader = stub.PyRecordReader_New(str(path))
    for payload in (b"one", b"", b"three"):
        reader.GetNext()
        assert reader.record() == payload


def test_our_example_by_hand():
    """Feature of one text: tag, length, ... as the protobuf wire format has them."""
    assert example({"a": b"b"}).hex(" ") == "0a 0c 0a 0a 0a 01 61 12 05 0a 03 0a 01 62"
    assert richhf._features(example({"a": b"b", "c": b""}, {"d": 1.0}), "x") == {
        "a": b"b",
        "c": b"",
    }


def test_scores_and_the_other_map_are_not_read(tmp_path):
    root, images = SETS["richhf"](tmp_path)
    found = {entry.name: entry.read for entry in FORMATS["richhf"].read(root, images)}["train:0"]()
    assert found.said == {"source": "human"} and found.mask is not None
    assert (found.mask == heat(20)).all() and not (found.mask == heat(21)).all()


def test_images_are_asked_for(tmp_path):
    root, _ = SETS["richhf"](tmp_path)
    with pytest.raises(UserError, match="give their folder"):
        list(FORMATS["richhf"].read(root, None))


def test_a_missing_library_is_named_before_the_first_record(tmp_path, monkeypatch):
    root, images = SETS["richhf"](tmp_path)
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(UserError, match="pip install google-crc32c"):
        next(FORMATS["richhf"].read(root, images))


def test_two_images_of_one_uid_are_refused(tmp_path):
    root, images = SETS["richhf"](tmp_path)
    assert images is not None
    put(images / "again/u-1.jpg", picture(1))
    found = outcome(root, images)
    assert "two images" in found["train:1"] and not found["train:0"]


@pytest.mark.parametrize("place", ["payload", "its checksum"])
def test_a_damaged_payload_costs_one_record(place, tmp_path):
    root, images = SETS["richhf"](tmp_path)
    path = root / "train.tfrecord"
    content = bytearray(path.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    content[12 + (length // 2 if place == "payload" else length)] ^= 4
    path.write_bytes(content)
    found = outcome(root, images)
    assert list(found) == ["dev:0", "train:0", "train:1", "train:2"]
    assert "checksum" in found["train:0"] and not found["train:1"] and not found["dev:0"]


@pytest.mark.parametrize("offset", range(12))
def test_a_damaged_length_ends_its_file_and_says_so(offset, tmp_path):
    root, images = SETS["richhf"](tmp_path)
    path = root / "train.tfrecord"
    content = bytearray(path.read_bytes())
    second = 16 + struct.unpack("<Q", content[:8])[0]
    content[second + offset] ^= 1
    path.write_bytes(content)
    found = outcome(root, images)
    assert list(found) == ["dev:0", "train:0", "train:1"]
    assert f"at byte {second}" in found["train:1"] and not found["train:0"]


def test_a_file_cut_off_anywhere_loses_only_its_tail(tmp_path):
    root, images = SETS["richhf"](tmp_path)
    content = (root / "dev.tfrecord").read_bytes()
    (root / "train.tfrecord").unlink()
    for kept in (1, 7, 11, 12, 13, len(content) // 2, len(content) - 1):
        (root / "dev.tfrecord").write_bytes(content[:kept])
        assert "cut off" in outcome(root, images)["dev:0"]
        (root / "dev.tfrecord").write_bytes(content + content[:kept])
        found = outcome(root, images)
        assert list(found) == ["dev:0", "dev:1"] and not found["dev:0"] and found["dev:1"]
    (root / "dev.tfrecord").write_bytes(content)
    assert outcome(root, images) == {"dev:0": ""}
    (root / "dev.tfrecord").write_bytes(b"")
    assert outcome(root, images) == {}


def test_payloads_that_are_whole_but_wrong(tmp_path, monkeypatch):
    root, images = SETS["richhf"](tmp_path)
    picture_bytes = encoded(heat(0))
    payloads = [
        b"\x0a\xff",  # a length past the end
        b"",
        example({"filename": b"u-0.png"}),
        example({"artifact_map": picture_bytes}),
        example({"filename": b"u-0.png", "artifact_map": b"no picture"}),
        example({"filename": b"\xff\xfe.png", "artifact_map": picture_bytes}),
        example({"filename": b"../../u-0.png", "artifact_map": picture_bytes}),
        example({"filename": b"u-0.png", "artifact_map": picture_bytes + bytes(5000)}),
    ]
    put(root / "train.tfrecord", tfrecord(*payloads))
    monkeypatch.setattr(richhf, "MAX_BYTES", 5000)
    found = list(outcome(root, images).values())[1:]
    wanted = ["no tf.train", "no 'filename'", "no 'artifact_map'", "no 'filename'", "none of PNG"]
    wanted += ["has no image", "", "larger than"]
    assert len(found) == len(wanted)
    assert all(
        part in reason and bool(part) == bool(reason)
        for part, reason in zip(wanted, found, strict=True)
    )


def test_a_reader_holds_no_payloads(tmp_path):
    """The entries of a file are offsets: their bytes are gone, so nothing can be read any more."""
    root, images = SETS["richhf"](tmp_path)
    entries = list(FORMATS["richhf"].read(root, images))
    size = (root / "train.tfrecord").stat().st_size
    (root / "train.tfrecord").write_bytes(bytes(size))
    with pytest.raises(UserError, match="checksum"):
        entries[1].read()
    assert np.array_equal(entries[0].read().image, picture(2))
