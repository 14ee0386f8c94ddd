"""A store's manifest and indices in, their checked entries out; how large members may be.

See `core.shards` for the files.
"""

import contextlib
import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any

from core import storage
from core.errors import UserError
from core.image_files import MAX_BYTES

MAX_RECORD_BYTES = 1_000_000
"""A record is a few hundred; a prompt may be long."""


def committed_lines(manifest: Path) -> list[dict[str, Any]]:
    """The manifest's lines; one that a crash left without its end was never committed."""
    if not manifest.exists():
        return []
    lines = manifest.read_bytes().split(b"\n")[:-1]
    try:
        return [dict(json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise UserError(f"{manifest} is damaged; restore it, or write the shards again.") from error


def end_cleanly(manifest: Path, lines: list[dict[str, Any]]) -> None:
    """Drop the line that a crash left without its end, before another one is appended to it."""
    if manifest.exists() and not manifest.read_bytes().endswith(b"\n"):
        content = "".join(json.dumps(line) + "\n" for line in lines)
        storage.write_atomic(manifest, content.encode())


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.jsonl")


def index_of(folder: Path, line: dict[str, Any]) -> list[dict[str, Any]]:
    """A committed shard's index entries, verified against its manifest line."""
    path = index_path(shard_of(folder, line))
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == line.get("index_sha256"):
            return [json.loads(entry) for entry in content.splitlines()]
    raise UserError(
        f"{path} is missing or damaged; restore it, or make it again from its tar with "
        f"`diffdoctor data check {folder}`."
    )


def shard_of(folder: Path, line: dict[str, Any]) -> Path:
    """The tar that a manifest line names, within its folder."""
    name = str(line.get("shard"))
    if not re.fullmatch(r"[A-Za-z0-9_-]+\.tar", name):
        raise UserError(f"{folder} names a shard {name!r}; its manifest is damaged, restore it.")
    return folder / name


def mend_indices(folder: Path) -> list[str]:
    """Write the indices that are missing or damaged again, where their tars are whole; their names.

    What is written is what its manifest line has the digest of, to the byte.
    """
    mended = []
    for line in (
        line for file in folder.glob("*.manifest.jsonl") for line in committed_lines(file)
    ):
        shard = shard_of(folder, line)
        with contextlib.suppress(UserError):
            index_of(folder, line)
            continue
        content = b""
        with contextlib.suppress(OSError, tarfile.TarError):
            content = index_text(entries_of(shard))
        if hashlib.sha256(content).hexdigest() == line.get("index_sha256"):
            storage.write_atomic(index_path(shard), content)  # a full disk is no damaged tar
            mended.append(index_path(shard).name)
    return mended


def entries_of(shard: Path) -> list[dict[str, Any]]:
    """A shard's index entries, as its tar has them."""
    places: dict[str, dict[str, Any]] = {}
    with tarfile.open(shard, "r:") as tar, shard.open("rb") as stream:
        for member in tar:
            key, _, kind = member.name.partition(".")
            stream.seek(member.offset_data)
            digest, left = hashlib.sha256(), member.size
            while left and (part := stream.read(min(left, 1 << 20))):
                digest.update(part)
                left -= len(part)
            body = {
                "offset": member.offset_data,
                "bytes": member.size,
                "sha256": digest.hexdigest(),
            }
            places.setdefault(key, {})[kind] = body
    return [{"key": key, "members": members} for key, members in places.items()]


def index_text(entries: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def cap_of(kind: str) -> int:
    """The most bytes that a member of this kind may have."""
    return MAX_RECORD_BYTES if kind == "json" else MAX_BYTES


def check_size(name: str, size: int, cap: int) -> None:
    if not 0 <= size <= cap:
        raise UserError(f"{name} has {size} bytes, more than {cap}; shrink it.")
