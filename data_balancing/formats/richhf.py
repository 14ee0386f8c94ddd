"""RichHF-18K in: {train,dev,test}.tfrecord, and its images apart, by uid; heat maps as masks out.

A record is u64 length, u32 masked crc32c of it, payload, u32 masked crc32c of that, all
little-endian; the payload a `tf.train.Example`. The scores are not read.
"""

import os
import struct
from collections.abc import Iterator
from functools import cache, partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from core.errors import UserError
from core.image_files import MAX_BYTES, decode_image, gray
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import by_stem, only, printable, read_levels, refused, walk

WHAT = "{train,dev,test}.tfrecord; the images, named by their uid, in a folder of their own"
HEAD, TAIL = 12, 4
"""Bytes before and after a payload."""


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    """A map may have another size than its image (published ones are 512x512)."""
    files = [root] if root.is_file() else sorted(root.glob("*.tfrecord"))
    if not files:
        raise UserError(f"{root} is no RichHF-18K: it needs {WHAT}.")
    if images is None:
        raise UserError(
            "RichHF-18K comes without images: download those of Pick-a-Pic that it names, and give "
            "their folder as images."
        )
    _crc32c(b"")
    pictures = by_stem(walk(images))
    for file in files:
        yield from _entries(file, pictures)


def masked(crc: int) -> int:
    """As the format stores a crc32c: turned by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _entries(file: Path, pictures: dict[str, list[Path]]) -> Iterator[Entry]:
    """One for each record; where a length is wrong the next record cannot be found."""
    try:
        stream = file.open("rb")
    except OSError as error:
        yield refused(file.name, f"cannot read {file} ({error.strerror}); check the path.")
        return
    with stream:
        size = os.fstat(stream.fileno()).st_size
        start = 0
        for number in count():
            if start == size:
                return
            name = f"{file.stem}:{number}"
            stream.seek(start)
            length = _length(stream)
            if length is None or start + HEAD + length + TAIL > size:
                reason = f"{file} is damaged or cut off at byte {start}; download it again."
                yield refused(name, reason)
                return
            yield Entry(name, partial(_read, file, start + HEAD, length, name, pictures))
            start += HEAD + length + TAIL


def _length(stream: BinaryIO) -> int | None:
    head = stream.read(HEAD)
    if len(head) < HEAD or struct.unpack("<I", head[8:])[0] != masked(_crc32c(head[:8])):
        return None
    return struct.unpack("<Q", head[:8])[0]


def _read(file: Path, start: int, length: int, name: str, pictures: dict) -> Labelled:
    features = _features(_payload(file, start, length, name), name)
    uid = PurePosixPath(features.get("filename", b"").decode(errors="backslashreplace")).stem
    if not uid:
        raise UserError(f"{name} has no 'filename'; remove it.")
    if "artifact_map" not in features:
        raise UserError(f"{name} ({uid}) has no 'artifact_map'; remove it.")
    picture = decode_image(features["artifact_map"], f"the map of {name} ({uid})")
    image = read_levels(only(pictures, uid, "image"))
    return Labelled(image, gray(picture), {"source": "human"})


def _payload(file: Path, start: int, length: int, name: str) -> bytes:
    if length > MAX_BYTES:
        raise UserError(f"{name} is larger than {MAX_BYTES} bytes; remove it.")
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            content = stream.read(length + TAIL)
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}); check the path.") from error
    payload, tail = content[:length], content[length:]
    if len(tail) < TAIL or struct.unpack("<I", tail)[0] != masked(_crc32c(payload)):
        raise UserError(f"{name} is damaged (its checksum is another); download {file} again.")
    return payload


def _features(payload: bytes, name: str) -> dict[str, bytes]:
    """The first text of each feature that holds texts."""
    from google.protobuf.message import DecodeError

    try:
        entries = _example_type().FromString(payload).features.feature
    except DecodeError as error:
        raise UserError(f"{name} is no tf.train.Example ({error}); remove it.") from error
    texts = {
        entry.key.decode(errors="backslashreplace"): entry.value.bytes_list.value
        for entry in entries
    }
    return {printable(key): values[0] for key, values in texts.items() if values}


@cache
def _example_type() -> Any:
    """The part of `tf.train.Example` that is read; a map is a repeated (key, value)."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    shapes = {
        "Texts": [("value", 1, kinds.TYPE_BYTES, True, "")],
        "Feature": [("bytes_list", 1, kinds.TYPE_MESSAGE, False, "Texts")],
        "Pair": [
            ("key", 1, kinds.TYPE_BYTES, False, ""),
            ("value", 2, kinds.TYPE_MESSAGE, False, "Feature"),
        ],
        "Features": [("feature", 1, kinds.TYPE_MESSAGE, True, "Pair")],
        "Example": [("features", 1, kinds.TYPE_MESSAGE, False, "Features")],
    }
    file = descriptor_pb2.FileDescriptorProto(name="richhf.proto", package="richhf")
    for name, fields in shapes.items():
        message = file.message_type.add(name=name)
        for field, number, kind, many, of in fields:
            label = kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL
            made = message.field.add(name=field, number=number, type=kind, label=label)
            if of:
                made.type_name = f".richhf.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("richhf.Example"))


def _crc32c(content: bytes) -> int:
    try:
        import google_crc32c
    except ImportError as error:
        raise UserError(
            "TFRecord files need google-crc32c: install it (pip install google-crc32c)."
        ) from error
    return google_crc32c.value(content)
