"""Bytes in, durable files out: the few storage operations that crash safety rests on.

Every durable write of the project goes through `primitives`, so that a test can stop, fail or
count each one. A file or folder is complete when its final name exists: content goes to a
temporary name, is fsynced, renamed, and the parent folder fsynced.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from core.errors import DiskFull, UserError

CHUNK = 8 << 20
"""Bytes a single write call carries."""
BLOCKS, BLOCK = 64, 16 << 10
"""Of a file that is not read as a whole: how many parts of how many bytes are."""


@dataclass
class Primitives:
    """The operations that touch the disk; tests replace members to inject faults."""

    mkdir: Callable[..., Any] = os.mkdir
    open: Callable[..., int] = os.open
    write: Callable[..., int] = os.write
    fsync: Callable[..., Any] = os.fsync
    rename: Callable[..., Any] = os.rename
    unlink: Callable[..., Any] = os.unlink
    rmdir: Callable[..., Any] = os.rmdir


primitives = Primitives()


def write_file(path: Path, content: bytes) -> None:
    """Create or replace `path` with `content` and fsync it; not atomic by itself."""
    handle = primitives.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _write_all(handle, content)
        primitives.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes) -> None:
    """Readers see the old file or the whole new one, also after a crash.

    Raises `UserError` ("disk full: ...") when there is no room.
    """
    owner = f"{os.getpid()}.{threading.get_ident()}"  # two writers of one file: the last one stays
    temporary = path.with_name(f".{path.name}.{owner}.tmp")
    try:
        write_file(temporary, content)
        primitives.rename(temporary, path)
    except (OSError, KeyboardInterrupt) as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise_if_full(error, path, len(content))
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line and fsync; a torn line left by a crash is ended first."""
    handle = primitives.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    content = line.encode() + b"\n"
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            content = b"\n" + content
        _write_all(handle, content)
        primitives.fsync(handle)
    except OSError as error:
        raise_if_full(error, path, len(content))
        raise
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make names created, renamed or removed in `folder` survive a power loss."""
    handle = primitives.open(folder, os.O_RDONLY)
    try:
        primitives.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder of files and folders; links are removed, never followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            primitives.unlink(entry.path)
    primitives.rmdir(folder)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a `.jsonl` file; torn lines are passed over, no file is no lines."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a crash: it was never acknowledged
        if isinstance(record, dict):
            records.append(record)
    return records


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object; raises `UserError` for any other."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: copy or download it again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: copy or download it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: copy or download it again.")
    return content


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """Hex digest of a file's size and content; of a large one, of blocks all over it.

    Other weights under the same name, or another file of the same size, are told apart at the cost
    of `BLOCKS` blocks; single bytes between these are not looked at.
    """
    size = path.stat().st_size
    total = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as stream:
        if size <= BLOCKS * BLOCK:
            total.update(stream.read())
        else:
            for i in range(BLOCKS):
                stream.seek(i * (size - BLOCK) // (BLOCKS - 1))
                total.update(stream.read(BLOCK))
    return total.hexdigest()


def lock_file(path: Path, refusal: str) -> BinaryIO:
    """An exclusive flock, which the kernel frees when the process ends, however it does.

    Raises `UserError` with `refusal` while another process holds it.
    """
    held = path.open("ab")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise UserError(refusal) from error
    return held


@contextlib.contextmanager
def alone(key: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file while working, and remove it; `UserError` where another process has it."""
    held = lock_file(key, refusal)
    try:
        yield
    finally:
        key.unlink(missing_ok=True)
        held.close()


def check_writable(folder: Path) -> None:
    """Raise `UserError` unless a folder is there, or can be made there, and may be written to."""
    path = folder.expanduser().absolute()
    above = next(one for one in (path, *path.parents) if one.exists())
    if not above.is_dir():
        raise UserError(f"{above} is a file: name a folder with --out.")
    if not may_write(above):
        raise UserError(f"{folder} cannot be written to: name another --out.")


def may_write(folder: Path) -> bool:
    """Whether a file can be made in a folder, by making one that has no name: what permissions say
    is not true for root, nor of every disk that machines share."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_file(path: Path) -> None:
    """Raise `UserError` unless a file can be written there; its folder may yet have to be made."""
    if path.expanduser().is_dir():
        raise UserError(f"--out {path} is a folder: name a file.")
    check_writable(path.parent)


def check_room(folder: Path, need: int, freed: int = 0) -> None:
    """Raise `UserError` unless a folder's disk has room, once `freed` bytes are removed."""
    path = folder.absolute()
    above = next(one for one in (path, *path.parents) if one.is_dir())
    free = shutil.disk_usage(above).free + freed
    if free < need:
        raise UserError(
            f"disk full: {folder}, need {need} bytes, free {free} bytes; free some space."
        )


def raise_if_full(error: OSError, path: Path, need: int) -> None:
    """Turn "no space" and "quota exceeded" into `DiskFull`; other errors pass."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    raise DiskFull(
        f"disk full: {path}, need {need} bytes, free {free} bytes; "
        "free some space and run the same command again."
    ) from error


def _write_all(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[primitives.write(handle, view[:CHUNK]) :]
