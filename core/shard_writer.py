"""Samples in, tar shards and their index out; `core.shards` has the files, and reads them."""

import contextlib
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from core import storage
from core.errors import UserError
from core.image_files import encode_png
from core.samples import Sample
from core.shard_index import (
    cap_of,
    check_size,
    committed_lines,
    end_cleanly,
    index_of,
    index_path,
    index_text,
)

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


def _sweep(folder: Path, name: str) -> None:
    """Remove what a stopped writer of this name left under temporary names."""
    ours = re.compile(rf"\.{name}(-\d+\.(tar|index\.jsonl)|\.manifest\.jsonl)(\.\d+){{0,2}}\.tmp")
    for path in folder.iterdir():
        if ours.fullmatch(path.name):
            path.unlink()
