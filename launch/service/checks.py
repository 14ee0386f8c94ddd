"""A file that a job names in; that it is there, whole and readable out."""

from collections.abc import Callable
from typing import Any

from core.errors import UserError
from launch.service.requests import unpacked
from launch.service.shelf import Files

READ = ".txt", ".jsonl", ".csv", ".parquet"
"""Endings of what is read before it is said to be in order; pictures are when they are used."""


def check_file(files: Files, ask: Callable[..., Any], file_id: str, owner: str) -> None:
    """Unpack an archive, read a list; `ask` is a `Checker`'s.

    Raises `UserError` for what its owner can mend, and `OSError` where the store itself is away.
    """
    row = files.get(file_id, owner)
    if row is None:
        raise UserError(f"the file {file_id} is gone: upload it again.")
    path = files.path(row)
    if not path.is_file() and not path.parent.parent.is_dir():
        raise FileNotFoundError("the folder of all files is away")
    if not path.is_file() or path.stat().st_size != row["bytes"]:
        raise UserError(f"the file {file_id} is damaged: upload it again.")
    if path.suffix == ".zip":
        into = str(unpacked(path))
        room = files.room(owner) + row["unpacked"]
        taken = ask("unpack", archive=str(path), into=into, room=room)
        files.has_unpacked(file_id, taken)
    elif path.suffix in READ:
        ask("read", file=str(path), name=row["filename"])
