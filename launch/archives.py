"""A folder in, a .zip out; and a stranger's .zip in, a folder of plain files out, or nothing.

Nothing that an archive says about itself is believed: names are looked at one by one, and bytes
are counted as they come out.
"""

import errno
import io
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from core.errors import UserError
from core.storage import remove_tree, sync_folder

MOST = 200_000
"""Members of an archive."""
DEEPEST = 16
LONGEST = 200
"""Bytes of a part of a name, and sixteen of them of a whole one."""
LIST = 24 << 20
"""Bytes of the list of members, which is read at once: some 120 for each of `MOST`."""
TAKEN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Kinds of compression. Of others `zipfile` unpacks as much at once as there is: of bzip2, which
makes 200 MB of 277 bytes, more than there is memory."""
CHUNK = 1 << 20
ODD = {errno.EEXIST, errno.EINVAL, errno.ENOTDIR}
"""Faults of an archive, not of the disk: a file that is a folder too, a place before the start."""
MEANT = {"images", "masks", "real"}
"""Folders that mean something to who reads the data, also where one stands alone."""


def pack(folder: Path, archive: Path) -> None:
    """Regular files that are not hidden; images are not compressed once more.

    Raises `UserError` at a link: it may lead anywhere, and a folder behind it is not gone through.
    """
    # Not strict: times before 1980 or after 2107, which a .zip cannot say, become the nearest.
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED, strict_timestamps=False) as packed:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if any(part.startswith(".") for part in name.parts):
                continue
            if path.is_symlink():
                raise UserError(f"{path} is a link: send a copy with its files (cp -rL).")
            if path.is_file():
                packed.write(path, name.as_posix())


class Archive(io.FileIO):
    """A file whose list of members is read only where it is of a sane length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LIST:
            raise UserError(f"the archive's list of members has {size} bytes, more than {LIST}.")
        return super().read(size)


def unpack(archive: Path, into: Path, room: int) -> int:
    """Make the folder `into` of an archive, whole or not at all; the bytes that it holds.

    Takes regular files only, `room` bytes in all. Raises `UserError` for anything else. Where all
    stands in one folder, as archivers often have it, that folder is left out.
    """
    if into.is_dir():
        return sum(one.stat().st_size for one in into.rglob("*") if one.is_file())
    staging = into.with_name(f".{into.name}.staging")
    if staging.exists():
        remove_tree(staging)
    staging.mkdir(parents=True)
    try:
        left = _extract(archive, staging, room)
        inner = list(staging.iterdir())
        # All that the machine has to write, at once: an fsync takes ms, and there may be `MOST`.
        os.sync()
        alone = len(inner) == 1 and inner[0].is_dir() and inner[0].name not in MEANT
        (inner[0] if alone else staging).rename(into)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise UserError(f"the archive is damaged or of another kind ({error}).") from error
    except RuntimeError as error:  # zipfile's word for a password
        raise UserError("the archive is encrypted: send it without a password.") from error
    except OSError as error:
        if error.errno not in ODD:
            raise
        raise UserError(f"the archive's members do not fit ({error.strerror}).") from error
    finally:
        if staging.exists():
            remove_tree(staging)
    sync_folder(into.parent)
    return room - left


def _extract(archive: Path, staging: Path, room: int) -> int:
    """The room that is left."""
    with Archive(archive) as file, zipfile.ZipFile(file) as packed:
        members = packed.infolist()
        if len(members) > MOST:
            raise UserError(f"the archive has {len(members)} members, more than {MOST}.")
        taken: set[str] = set()
        for member in members:
            name = checked_name(member)
            if member.is_dir() or name.parts[0] == "__MACOSX":  # resource forks, of no use
                continue
            if str(name).casefold() in taken:
                raise UserError(f"the archive has two members named {str(name)[:80]!r}.")
            taken.add(str(name).casefold())
            room = _write(packed, member, staging / name, room)
        if not taken:
            raise UserError("the archive holds no file.")
    return room


def checked_name(member: zipfile.ZipInfo) -> PurePosixPath:
    """The name of a member as a path below a folder, or `UserError`."""
    name, shown = member.filename, repr(member.filename[:80])
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"the archive's member {shown} is a link or a device.")
    if member.compress_type not in TAKEN:
        raise UserError(f"the archive's member {shown} is not stored or deflated: pack it anew so.")
    parts = name.removesuffix("/").split("/")
    strange = any(part in ("", ".", "..") or len(part.encode()) > LONGEST for part in parts)
    if strange or "\\" in name or ":" in name or not name.isprintable() or len(parts) > DEEPEST:
        raise UserError(f"the archive's member {shown} has a name that is no plain path.")
    return PurePosixPath(*parts)


def _write(packed: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, room: int) -> int:
    """The room that is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with packed.open(member) as source, os.fdopen(handle, "wb") as stream:
        while content := source.read(CHUNK):
            room -= len(content)
            if room < 0 or shutil.disk_usage(target.parent).free < CHUNK * 64:
                raise UserError("the archive unpacks to more than there is room for.")
            stream.write(content)
    return room
