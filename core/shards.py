"""Samples in, tar shards and their index out, and samples back in any order.

shard-000000.tar          {key}.png, {key}.mask.png, {key}.reference.png (the last two where there
                          are any), {key}.json, as webdataset readers expect; the image may also
                          be a {key}.jpg or {key}.jpeg that somebody else wrote
shard-000000.index.jsonl  key, and offset, size and sha256 of each member
shard.manifest.jsonl      one line a committed shard, with the digests of both files
"""

import bisect
import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from pydantic import ValidationError

from core import storage
from core.errors import UserError
from core.image_files import MAX_BYTES, decode_image, encode_png, flatten, mask_of
from core.places import Places
from core.samples import Record, Sample, safe_key
from core.shard_index import (
    committed_lines,
    end_cleanly,
    index_of,
    index_path,
    index_text,
)

__all__ = ["Record", "Sample", "ShardStore", "ShardWriter", "safe_key"]

MAX_RECORD_BYTES = 1_000_000
IMAGES = ("png", "jpg", "jpeg")
"""Members that can be a sample's image."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class ShardWriter:
    """Writes samples into shards of `shard_size` samples; a context manager.

    A shard is committed whole: temporary name, fsync, rename, index, manifest line. Keys that
    were committed earlier are passed over, so running again repeats nothing; `key in writer`
    tells before the work is done. On an exception the shard in progress is dropped. Writers
    side by side in one folder take different `name`s; one name has one writer (`UserError`).
    """

    def __init__(self, folder: Path, shard_size: int = 1000, name: str = "shard"):
        if not _NAME.fullmatch(name) or shard_size < 1:
            raise UserError(f"shard name {name!r} or size {shard_size} is not usable.")
        self.folder, self.shard_size, self.name = Path(folder), shard_size, name
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".{name}.lock"
        busy = f"another writer holds {path}; wait for it or use another name."
        self._lock = storage.lock_file(path, busy)
        _sweep(self.folder, name)
        self._manifest = self.folder / f"{name}.manifest.jsonl"
        committed = committed_lines(self._manifest)
        end_cleanly(self._manifest, committed)
        self._next = len(committed)
        self._keys = {entry["key"] for line in committed for entry in index_of(self.folder, line)}
        self._shard: _OpenShard | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    @property
    def committed(self) -> int:
        """Shards that are there for good."""
        return self._next

    def write(self, sample: Sample) -> bool:
        """Add a sample; False if its key is already there."""
        return sample.key not in self._keys and self.write_encoded(sample.key, encoded(sample))

    def write_encoded(self, key: str, members: Mapping[str, bytes]) -> bool:
        """The same of what `encoded` gives; the contents are taken as they are.

        Raises `UserError` for a member that no `ShardStore` would read.
        """
        if key in self._keys:
            return False
        check_members(key, members)
        if self._shard is None:
            self._shard = _OpenShard(self.folder / f"{self.name}-{self._next:06d}.tar")
        with self._saying_full(self._shard):
            self._shard.add(key, members)
        self._keys.add(key)
        if len(self._shard.entries) == self.shard_size:
            self._commit(self._shard)
        return True

    def _commit(self, shard: "_OpenShard") -> None:
        with self._saying_full(shard):
            storage.append_line(self._manifest, json.dumps(shard.commit()))
        self._next += 1
        self._shard = None

    @contextlib.contextmanager
    def _saying_full(self, shard: "_OpenShard") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            storage.raise_if_full(error, shard.path, shard.size)
            raise

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._shard is not None:
                self._commit(self._shard)
        finally:
            if self._shard is not None:
                self._shard.drop()
            self._lock.close()


def cap_of(kind: str) -> int:
    """The most bytes that a member of this kind may have."""
    return MAX_RECORD_BYTES if kind == "json" else MAX_BYTES


def check_size(name: str, size: int, cap: int) -> None:
    if not 0 <= size <= cap:
        raise UserError(f"{name} has {size} bytes, more than {cap}; shrink it.")


def check_members(key: str, members: Mapping[str, bytes]) -> None:
    """Raise `UserError` for a member that no `ShardStore` would read."""
    for kind, content in members.items():
        check_size(f"{key}.{kind}", len(content), cap_of(kind))


def encoded(sample: Sample) -> dict[str, bytes]:
    """The contents of a sample's members, by kind."""
    members = {"png": encode_png(sample.image)}
    if sample.mask is not None:
        members["mask.png"] = encode_png(sample.mask)
    if sample.reference is not None:
        members["reference.png"] = encode_png(sample.reference)
    return members | {"json": sample.record.model_dump_json().encode()}


class _OpenShard:
    """A tar in the making under a temporary name; its bytes depend on its samples alone."""

    def __init__(self, path: Path):
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._file = _HashedFile(self._temporary.open("wb"))
        # tarfile asks a plain write-mode target for write and tell only
        self._tar = tarfile.open(
            fileobj=cast(BinaryIO, self._file), mode="w", format=tarfile.USTAR_FORMAT
        )

    @property
    def size(self) -> int:
        return self._file.size

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        places = {kind: self._add(f"{key}.{kind}", body) for kind, body in members.items()}
        self.entries.append({"key": key, "members": places})

    def _add(self, name: str, content: bytes) -> dict[str, Any]:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        offset = self._tar.offset + tarfile.BLOCKSIZE  # the body follows one header block
        self._tar.addfile(header, io.BytesIO(content))
        digest = hashlib.sha256(content).hexdigest()
        return {"offset": offset, "bytes": len(content), "sha256": digest}

    def commit(self) -> dict[str, Any]:
        """Make the shard and its index durable; returns the manifest line."""
        self._tar.close()
        self._file.stream.flush()
        storage.primitives.fsync(self._file.stream.fileno())
        self._file.stream.close()
        storage.primitives.rename(self._temporary, self.path)
        index = index_text(self.entries)
        storage.write_atomic(index_path(self.path), index)  # also syncs the folder
        return {
            "shard": self.path.name,
            "samples": len(self.entries),
            "bytes": self._file.size,
            "sha256": self._file.digest.hexdigest(),
            "index_sha256": hashlib.sha256(index).hexdigest(),
        }

    def drop(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
            self._file.stream.close()
        self._temporary.unlink(missing_ok=True)


class _HashedFile:
    """A file that hashes and counts what is written to it."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.digest, self.size = stream, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        return self.stream.write(content)

    def tell(self) -> int:
        return self.size


class ShardStore(Sequence[Sample]):
    """The committed samples of a folder, by position; every byte is verified when it is read.

    What is held of a sample is its key and the places of its members, some 250 bytes.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        manifests = sorted(self.folder.glob("*.manifest.jsonl"))
        if not manifests:
            raise no_store(self.folder)
        self.keys: list[str] = []
        self.digests: dict[str, str] = {}
        """sha256 of each shard, as its writer noted it."""
        self._shards: list[str] = []
        self._starts = [0]
        places = Places()
        for line in (line for manifest in manifests for line in committed_lines(manifest)):
            entries = index_of(self.folder, line)
            self._shards.append(line["shard"])
            self.digests[line["shard"]] = str(line.get("sha256"))
            self._starts.append(self._starts[-1] + len(entries))
            self.keys += [entry["key"] for entry in entries]
            places.add([entry["members"] for entry in entries])
        self._places = places.joined()
        if len(set(self.keys)) != len(self.keys):
            raise UserError(f"{folder} holds a key twice; write the shards again by one writer.")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i):  # type: ignore[override]
        """Sample i; `UserError` naming shard and member if it is damaged."""
        i = range(len(self))[i]  # from the end, where negative
        image = self._picture(i, self.image_kind(i))
        mask, reference = (self._picture(i, kind) for kind in ("mask.png", "reference.png"))
        assert image is not None  # `image_kind` found it
        return Sample(self.keys[i], image, mask, self.record(i), reference)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def record(self, i: int) -> Record:
        """Of sample i; no image is decoded."""
        i = range(len(self))[i]
        content = self._member(i, "json")
        try:
            return Record.model_validate_json(content or b"")
        except ValidationError as error:
            name = f"{self._shard(i)}:{self.keys[i]}.json"
            raise UserError(f"{name} is no record; write it again.") from error

    def shards(self) -> dict[str, range]:
        """The positions of each shard's samples."""
        ends = zip(self._shards, self._starts, self._starts[1:], strict=False)
        return {shard: range(start, end) for shard, start, end in ends}

    def encoded_image(self, i: int) -> bytes:
        """The image of sample i as it lies there: to be copied, or decoded elsewhere."""
        return self._member(i, self.image_kind(i)) or b""

    def encoded(self, i: int) -> dict[str, bytes]:
        """All members of sample i as they lie there, by kind; for `ShardWriter.write_encoded`."""
        kinds = (self.image_kind(i), "mask.png", "reference.png", "json")
        found = {kind: self._member(i, kind) for kind in kinds}
        return {kind: content for kind, content in found.items() if content is not None}

    def image_kind(self, i: int) -> str:
        """Which of `IMAGES` sample i has; `UserError` where it has none."""
        for kind in IMAGES:
            if self._places.of(i, kind) is not None:
                return kind
        raise UserError(f"{self._shard(i)} has no image of {self.keys[i]}; write it again.")

    def has_mask(self, i: int) -> bool:
        return self._places.of(i, "mask.png") is not None

    def records(self) -> "Records":
        """All of them, in the order of the positions, each read when it is asked for."""
        return Records(self)

    def _shard(self, i: int) -> str:
        return self._shards[bisect.bisect_right(self._starts, i) - 1]

    def _picture(self, i: int, kind: str) -> np.ndarray | None:
        content = self._member(i, kind)
        if content is None:
            return None
        name = f"{self._shard(i)}:{self.keys[i]}.{kind}"
        picture = decode_image(content, name)
        return mask_of(picture, name) if kind == "mask.png" else np.array(flatten(picture))

    def _member(self, i: int, kind: str) -> bytes | None:
        """A member's bytes; the size is checked before reading, the digest after."""
        place = self._places.of(i, kind)
        if place is None:
            return None
        path = self.folder / self._shard(i)
        name = f"{path}:{self.keys[i]}.{kind}"
        check_size(name, place.size, cap_of(kind))
        try:
            with path.open("rb") as stream:
                content = os.pread(stream.fileno(), place.size, place.offset)
        except OSError as error:
            raise UserError(f"cannot read {name} ({error.strerror}); restore it.") from error
        if hashlib.sha256(content).hexdigest() != place.sha256:
            raise UserError(f"{name} is damaged (another sha256 than its index); restore it.")
        return content


def no_store(folder: Path) -> UserError:
    """What to say of a folder without a manifest."""
    if any(folder.glob("*.tar")):
        return UserError(
            f"{folder} holds tars without the index of a store: bring them into one with "
            "`diffdoctor data import webdataset`."
        )
    return UserError(f"{folder} is no store: bring a set into one with `diffdoctor data import`.")


def filled(folder: Path) -> ShardStore:
    """A store with something in it; `UserError` where it is empty."""
    store = ShardStore(folder)
    if not len(store):
        raise UserError(f"{folder} holds no sample: its writing was stopped, begin it again.")
    return store


class Records(Sequence[Record]):
    """The records of a store's samples, each read when it is asked for."""

    def __init__(self, store: ShardStore):
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, i):  # type: ignore[override]
        return self.store.record(i)


def _sweep(folder: Path, name: str) -> None:
    """Remove what a stopped writer of this name left under temporary names."""
    ours = re.compile(rf"\.{name}(-\d+\.(tar|index\.jsonl)|\.manifest\.jsonl)(\.\d+){{0,2}}\.tmp")
    for path in folder.iterdir():
        if ours.fullmatch(path.name):
            path.unlink()
