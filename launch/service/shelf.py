"""Files of owners: bytes of a request in, a file beneath the root and its row out.

What a caller calls a file is only ever shown: on the disk its name is made of its id, and one of a
few known endings.
"""

import hashlib
import os
import shutil
import threading
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import sqlalchemy as sa

from core.errors import UserError
from core.storage import raise_if_full, remove_tree, sha256_file, sync_folder
from launch.service import tables as t
from launch.service.database import Database, Page, Row, first, page
from launch.service.states import FINAL, Refused
from launch.service.store import new_id

ENDINGS = (
    ".txt", ".jsonl", ".csv", ".parquet", ".zip", ".json", ".yaml", ".yml",
    ".png", ".jpg", ".jpeg", ".webp", ".safetensors",
)  # fmt: skip
"""What may be uploaded: what some program reads, and nothing that any program would run."""
SPARE = 1 << 30
"""Bytes of the disk that uploads leave free."""
RESULT = "fine-tune-results"
DELETE = "`diffdoctor files list`, `diffdoctor files delete`"


class Files:
    """Rows and bytes of all files."""

    def __init__(self, database: Database, root: Path, quota: int):
        self.read, self.write = database.read, database.write
        self.root = root
        self.quota = quota
        """Bytes that one owner's uploads may hold together."""
        self._coming: dict[str, Room] = {}
        self._one = threading.Lock()
        for name in ("files", "incoming"):
            (root / name).mkdir(exist_ok=True)

    def incoming(self, owner: str) -> "Incoming":
        """A file to be filled; raises `UserError` where the owner's or the disk's room is used."""
        free = shutil.disk_usage(self.root).free - SPARE
        if free <= 0:
            raise UserError("the service's disk is full: tell who runs it.")
        with self._one:
            coming = self._coming.get(owner)
            if coming is None or not coming.open:
                coming = self._coming[owner] = Room(min(self.room(owner), free))
            if coming.left <= 0:
                raise UserError(f"your files fill the room that is yours: delete some ({DELETE}).")
            return Incoming(self.root / "incoming" / new_id("part"), coming)

    def keep(self, part: "Incoming", owner: str, name: str, purpose: str) -> Row:
        """Give what has come in its place and its row."""
        row = {
            "id": new_id("file"),
            "owner": owner,
            "filename": shown_name(name),
            "purpose": purpose,
            "bytes": part.size,
            "sha256": part.digest(),
            "created_at": time.time(),
        }
        row["place"] = f"files/{row['id']}/content{ending(name)}"
        target = self.root / row["place"]
        target.parent.mkdir()
        try:
            part.move(target)
            with self.write() as c:
                c.execute(t.files.insert().values(**row))
        except Exception:  # without a row nobody would ever find it
            remove_tree(target.parent)
            raise
        return row

    def get(self, file_id: str, owner: str) -> Row | None:
        """None where there is none, or none of this owner's."""
        with self.read() as c:
            query = sa.select(t.files).where(t.files.c.id == file_id, t.files.c.owner == owner)
            return first(c.execute(query))

    def listed(self, owner: str, after: str | None, limit: int, purpose: str | None = None) -> Page:
        """Newest first."""
        chosen = t.files.c.owner == owner
        if purpose is not None:
            chosen = sa.and_(chosen, t.files.c.purpose == purpose)
        with self.read() as c:
            return page(c, t.files, chosen, after, limit)

    def room(self, owner: str) -> int:
        """Bytes that an owner may still bring, archives counted packed and unpacked."""
        chosen = (t.files.c.owner == owner, t.files.c.job_id.is_(None))
        taken = sa.func.sum(t.files.c.bytes + t.files.c.unpacked)
        with self.read() as c:
            query = sa.select(sa.func.coalesce(taken, 0)).where(*chosen)
            return self.quota - int(c.execute(query).scalar_one())

    def has_unpacked(self, file_id: str, size: int) -> None:
        with self.write() as c:
            c.execute(t.files.update().where(t.files.c.id == file_id).values(unpacked=size))

    def of_jobs(self, job_ids: Sequence[str]) -> dict[str, list[str]]:
        """Ids of the files that jobs made."""
        found: dict[str, list[str]] = {one: [] for one in job_ids}
        table = t.files
        query = sa.select(table.c.id, table.c.job_id).where(table.c.job_id.in_(job_ids))
        with self.read() as c:
            for row in c.execute(query.order_by(table.c.seq)):
                found[row.job_id].append(row.id)
        return found

    def path(self, row: Row) -> Path:
        """Where its bytes are; raises `UserError` where that is not beneath the root any more."""
        return beneath(self.root, row["place"])

    def delete(self, file_id: str, owner: str) -> bool:
        """False where there is none; raises `Refused` while a job that is not final names it."""
        with self.write() as c:
            query = sa.select(t.files).where(t.files.c.id == file_id, t.files.c.owner == owner)
            row = first(c.execute(query.with_for_update()))
            if row is None:
                return False
            query = sa.select(t.jobs.c.id, t.jobs.c.uses)
            chosen = t.jobs.c.owner == owner, t.jobs.c.state.not_in(FINAL)
            for job in c.execute(query.where(*chosen)):
                if file_id in job.uses:
                    raise Refused(f"the job {job.id} uses this file: cancel it, or let it end.")
            c.execute(t.files.delete().where(t.files.c.id == file_id))
        if row["job_id"] is None:  # what a job made stays in its folder, of which others may read
            remove_tree(self.path(row).parent)
        return True

    def sweep(self) -> None:
        """Remove what was coming in when the service last stopped, and folders without a row."""
        for part in (self.root / "incoming").iterdir():
            part.unlink()
        with self.read() as c:
            known = set(c.execute(sa.select(t.files.c.id)).scalars())
        for folder in (self.root / "files").iterdir():
            if folder.name not in known:
                remove_tree(folder)


class Room:
    """Bytes that uploads of one owner share which come at the same time."""

    def __init__(self, left: int):
        self.left, self.open = left, 0
        self._one = threading.Lock()

    def begin(self) -> None:
        with self._one:
            self.open += 1

    def take(self, size: int) -> bool:
        with self._one:
            if size > self.left:
                return False
            self.left -= size
            return True

    def end(self, unused: int) -> None:
        with self._one:
            self.open -= 1
            self.left += unused


class Incoming:
    """A file that grows as a request's body arrives; removed unless it is kept."""

    def __init__(self, path: Path, room: Room):
        self.path, self.room, self.size = path, room, 0
        self._stream: BinaryIO = path.open("xb")
        self._sha = hashlib.sha256()
        self._kept = False
        room.begin()

    def write(self, content: bytes) -> None:
        """Raises `UserError` where there is no room for it."""
        if not self.room.take(len(content)):
            raise UserError(
                f"there is no room for this file: delete others ({DELETE}), or ask for more room."
            )
        self.size += len(content)
        self._sha.update(content)
        try:
            self._stream.write(content)
        except OSError as error:
            raise_if_full(error, self.path, len(content))
            raise

    def digest(self) -> str:
        return self._sha.hexdigest()

    def move(self, target: Path) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self.path.rename(target)
        self._kept = True
        sync_folder(target.parent)
        sync_folder(target.parent.parent)

    def close(self) -> None:
        self._stream.close()
        self.path.unlink(missing_ok=True)
        self.room.end(0 if self._kept else self.size)


def result_rows(job: Row, folder: Path, patterns: Sequence[str], root: Path) -> list[Row]:
    """Rows for the files that a job made, in the order of the patterns."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            inside = path.resolve().is_relative_to(folder.resolve())
            if path.is_file() and not path.is_symlink() and inside and path.name[0] != ".":
                found.setdefault(path.relative_to(folder).as_posix(), path)
    return [
        {
            "id": new_id("file"),
            "owner": job["owner"],
            "job_id": job["id"],
            "filename": name[:256],
            "purpose": RESULT,
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
            "created_at": time.time(),
            "place": path.relative_to(root).as_posix(),
        }
        for name, path in found.items()
    ]


def shown_name(name: str) -> str:
    """A caller's name for a file, as one line without folders; only ever shown."""
    plain = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    kept = "".join(one for one in plain if one.isprintable()).strip(" .")
    return kept[-200:] or "file"


def ending(name: str) -> str:
    """One of `ENDINGS`; raises `UserError` for a file of another kind."""
    found = os.path.splitext(shown_name(name).lower())[1]
    if found not in ENDINGS:
        raise UserError(
            f"a file that ends in '{found}' is of no use here: known are {', '.join(ENDINGS)}; "
            "a folder of images goes in a .zip."
        )
    return found


def beneath(root: Path, place: str) -> Path:
    """A path below the root after resolution of every link, or `UserError`."""
    path = (root / place).resolve()
    if not path.is_relative_to(root.resolve()) or path == root.resolve():
        raise UserError("that is no file of this service.")
    return path
