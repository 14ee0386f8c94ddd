"""A store's manifest and indices in, their checked entries out; see `core.shards` for the files."""

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from core import storage
from core.errors import UserError


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
    name = str(line.get("shard"))
    if not re.fullmatch(r"[A-Za-z0-9_-]+\.tar", name):
        raise UserError(f"{folder} names a shard {name!r}; its manifest is damaged, restore it.")
    path = index_path(folder / name)
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == line.get("index_sha256"):
            return [json.loads(entry) for entry in content.splitlines()]
    raise UserError(f"{path} is missing or damaged; restore it, or write the shards again.")
