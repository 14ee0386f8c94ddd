"""The first bytes of a safetensors file in; where each tensor lies, or what is wrong, out.

Strangers' files are read here before anything else reads them. The header has a small grammar, so
it is scanned by hand: no recursion, no object that the grammar has no place for, and bounds on
every count. What passes here also opens in the `safetensors` package (a test holds them together).
"""

import json
import math
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import UserError

MAX_HEADER, MAX_TEXT = 8 << 20, 3 << 20
"""Bytes of the header and of one text. A LoRA's has some hundred kB; with kohya's statistics of
tags it may have a few MB. A letter of one byte can take four in memory: hence so low."""
MAX_TENSORS, MAX_ENTRIES, MAX_SIDES = 20_000, 10_000, 8
"""Tensors of a file, entries of its metadata, sides of a tensor."""
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
FIRST = 256
KINDS = {
    "is-pointer": rb"version https://git-lfs",
    "is-page": rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)",
    "is-pickle": rb"PK\x03\x04|\x80[\x02-\x05]",
    "is-text": rb"[\t\n\r -~]+\Z",
}
"""Code -> how a file of the kind begins."""
NUMBER = re.compile(rb"(?:0|[1-9]\d{0,18})(?![\d.eE])")
SPACE = re.compile(rb"[ \t\r\n]*")


class Damage(Exception):
    """What is wrong with a header: a code and a sentence."""

    def __init__(self, code: str, what: str, where: str = "header"):
        super().__init__(what)
        self.code, self.what, self.where = code, what, where


class Entry(NamedTuple):
    """One tensor; its bytes are counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class LoraFile:
    """A file whose header holds; tensors are read one at a time, when asked for."""

    path: Path
    start: int
    """Bytes before the tensors."""
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """A view of the file's own pages, not a copy: what is not looked at takes no memory."""
        entry = self.entries[name]
        count = math.prod(entry.shape)
        if not count:
            return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        with self.path.open("rb") as file:  # the tensor keeps the pages
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        place = self.start + entry.begin
        flat = torch.frombuffer(pages, dtype=DTYPES[entry.dtype], count=count, offset=place)
        return flat.view(entry.shape)


def read_lora_file(path: Path) -> LoraFile:
    """The checked header of a safetensors file; raises `Damage` with the first fault."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise Damage(
                "header-short", f"the file has {size} bytes, and a header takes 8 at least"
            )
        length = int.from_bytes(first, "little")
        start = first + file.read(FIRST - 8)
        if start[8:9] not in (b"{", b""):
            raise Damage(kind(start), "byte 9 is no brace")
        file.seek(8)
        if length > size - 8:
            raise Damage("header-cut", f"its header of {length} bytes does not end in the file")
        if length > MAX_HEADER:
            raise Damage(
                "header-large", f"its header has {length} bytes, and {MAX_HEADER} are many"
            )
        raw = file.read(length)
    entries, metadata = Scanner(raw).header()
    check_places(entries, size - 8 - length)
    return LoraFile(path, 8 + length, entries, metadata)


def check_readable(path: Path) -> None:
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read: change its permissions, or copy it.")


def kind(start: bytes) -> str:
    """The code of what a file is that is no safetensors file, by its first bytes."""
    for code, pattern in KINDS.items():
        if re.match(pattern, start, re.IGNORECASE):
            return code
    return "no-safetensors"


def check_places(entries: dict[str, Entry], size: int) -> None:
    """Raise `Damage` unless the tensors fill the bytes after the header, each its own."""
    if not entries:
        raise Damage("no-tensors", "it has no tensor")
    for name, entry in entries.items():
        if entry.dtype not in DTYPES:
            raise Damage("dtype-unknown", f"its dtype '{entry.dtype}' is not known", name)
        if entry.begin > entry.end:
            raise Damage("offsets-reversed", "it ends before it begins", name)
        if entry.end > size:
            raise Damage("tensor-cut", f"it ends {entry.end - size} bytes after the file", name)
        need = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if need != entry.end - entry.begin:
            said = f"{entry.dtype} {list(entry.shape)} takes {need} bytes"
            raise Damage("size-wrong", f"{said}, and it has {entry.end - entry.begin}", name)
    end = 0
    for name, entry in sorted(entries.items(), key=lambda one: (one[1].begin, one[1].end)):
        if entry.begin < end:
            raise Damage("overlap", "it shares bytes with another tensor", name)
        if entry.begin > end:
            raise Damage("hole", f"{entry.begin - end} bytes before it belong to no tensor", name)
        end = entry.end
    if end != size:
        raise Damage("rest", f"{size - end} bytes after the last tensor belong to none", "end")


class Scanner:
    """Walks over the bytes of one header; every method takes what it names or raises `Damage`."""

    def __init__(self, raw: bytes):
        self.raw, self.at = raw, 0

    def header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        if not self.raw.startswith(b"{"):
            raise Damage("header-json", "its header does not begin with a brace")
        entries: dict[str, Entry] = {}
        metadata: dict[str, str] | None = None
        for name in self.names():
            if name in entries or (name == "__metadata__" and metadata is not None):
                raise Damage("name-twice", "it stands twice in the header", name[:200])
            if name == "__metadata__":
                metadata = self.strings()
                continue
            entries[name] = self.entry(name)
            if len(entries) > MAX_TENSORS:
                raise Damage("too-many", f"it has more than {MAX_TENSORS} tensors")
        self.skip()
        if self.at != len(self.raw):
            raise self.wrong("more than one object")
        return entries, metadata or {}

    def strings(self) -> dict[str, str]:
        """The metadata: text by name."""
        said: dict[str, str] = {}
        for name in self.names():
            said[name] = self.string()
            if len(said) > MAX_ENTRIES:
                raise Damage("too-many", f"its metadata has more than {MAX_ENTRIES} entries")
        return said

    def entry(self, name: str) -> Entry:
        found: dict[str, str | tuple[int, ...]] = {}
        for key in self.names():
            if key not in ("dtype", "shape", "data_offsets") or key in found:
                raise Damage("header-json", f"'{key[:50]}' has no place there", name[:200])
            found[key] = self.string() if key == "dtype" else self.numbers()
        match found:
            case {"dtype": str(dtype), "shape": tuple(shape), "data_offsets": (begin, end)}:
                return Entry(dtype, shape, begin, end)
        raise Damage("header-json", "its dtype, shape or data_offsets is missing", name[:200])

    def names(self) -> Iterator[str]:
        """The names of one object; the caller takes the value after each."""
        self.take(b"{")
        if self.passes(b"}"):
            return
        while True:
            name = self.string()
            self.take(b":")
            yield name
            if self.passes(b"}"):
                return
            self.take(b",")

    def numbers(self) -> tuple[int, ...]:
        self.take(b"[")
        if self.passes(b"]"):
            return ()
        found: list[int] = []
        while len(found) < MAX_SIDES:
            self.skip()
            number = NUMBER.match(self.raw, self.at)
            if number is None:
                raise self.wrong("no whole number")
            self.at = number.end()
            found.append(int(number[0]))
            if self.passes(b"]"):
                return tuple(found)
            self.take(b",")
        raise self.wrong(f"more than {MAX_SIDES} sides")

    def string(self) -> str:
        self.take(b'"')
        begin = self.at - 1
        while True:
            end = self.raw.find(b'"', self.at)
            if end < 0:
                raise self.wrong("a text without its end")
            slashes = end
            while self.raw[slashes - 1] == ord("\\"):
                slashes -= 1
            self.at = end + 1
            if (end - slashes) % 2 == 0:
                break
        if self.at - begin > MAX_TEXT:
            raise Damage("too-many", f"a text of its header has more than {MAX_TEXT} bytes")
        try:
            text = json.loads(self.raw[begin : self.at])
            text.encode()  # a lone half of a surrogate pair is no text
        except ValueError as error:
            raise self.wrong("a text that cannot be read") from error
        return text

    def skip(self) -> None:
        self.at = SPACE.match(self.raw, self.at).end()  # pyright: ignore[reportOptionalMemberAccess]

    def passes(self, mark: bytes) -> bool:
        """Whether the mark comes next; it is taken if so."""
        self.skip()
        there = self.raw.startswith(mark, self.at)
        self.at += len(mark) * there
        return there

    def take(self, mark: bytes) -> None:
        if not self.passes(mark):
            raise self.wrong(f"no {mark.decode()}")

    def wrong(self, what: str) -> Damage:
        return Damage("header-json", f"its header has {what} at byte {8 + self.at}")
