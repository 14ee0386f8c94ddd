"""Tar shards and their index in, samples out in any order; `core.shard_writer` writes them.

shard-000000.tar          {key}.png, {key}.mask.png, {key}.reference.png (the last two where there
                          are any), {key}.json, as webdataset readers expect; the image may also
                          be a {key}.jpg or {key}.jpeg that somebody else wrote
shard-000000.index.jsonl  key, and offset, size and sha256 of each member
shard.manifest.jsonl      one line a committed shard, with the digests of both files
"""

import bisect
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from core.errors import UserError
from core.image_files import decode_image, flatten, mask_of
from core.places import Places
from core.samples import Record, Sample
from core.shard_index import cap_of, check_size, committed_lines, index_of

IMAGES = ("png", "jpg", "jpeg")
"""Members that can be a sample's image."""


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
