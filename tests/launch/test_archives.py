"""Strangers' archives: refused or safe, within their room on the disk and in memory."""

import io
import os
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import PurePosixPath

import pytest

from core.errors import UserError
from launch import archives
from launch.service.shelf import Room
from launch.service.states import State
from tests.launch.house import bearer, house
from tests.launch.test_requests import sent
from tests.launch.test_store import job as row_of

ROOM = 10 << 20
LINK = stat.S_IFLNK | 0o777
FILE = stat.S_IFREG | 0o644


def zipped(*members, method=zipfile.ZIP_DEFLATED):
    """Bytes of an archive; a member is a name, its content, and perhaps a kind of file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content, *kind in members:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is, without zipfile's own mending
            info.external_attr = (kind[0] if kind else FILE) << 16
            info.compress_type = method
            with warnings.catch_warnings(action="ignore"):  # of a name that comes twice
                archive.writestr(info, content)
    return packed.getvalue()


def changed(archive, *changes):
    """Bytes at places after a mark put in the place of others; marks are counted from the end."""
    content = bytearray(archive)
    for mark, offset, new in changes:
        place = content.rfind(mark) + offset
        content[place : place + len(new)] = new
    return bytes(content)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
PLAIN = zipped(("a", b"x" * 1000))


@cache
def squeezed(method, size):
    """One member of zeros."""
    return zipped(("b", b"\0" * size), method=method)


@cache
def listed(number):
    """One small member, and a list that names it so often, each time as another one."""
    local = LOCAL + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, 0, 0, 0, 4, 0)
    record = struct.Struct("<4sHHHHHHIIIHHHHHII4s")
    names = (f"{i:04x}"[-4:].encode() for i in range(number))
    entries = (
        record.pack(CENTRAL, 20, 20, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, FILE << 16, 0, one)
        for one in names
    )
    central = b"".join(entries)
    end = struct.pack("<4sHHHHIIH", END, 0, 0, 1, 1, len(central), len(local) + 4, 0)
    return local + b"0000" + central + end


def overlapping():
    """Members that share one body of 4 MiB, which is packed to 4 kB, as zip bombs do."""
    body = zipped(("a" * 8, b"\0" * (4 << 20)))
    start = body.index(CENTRAL)
    central = body[start : body.index(END)]
    many = b"".join(central.replace(b"a" * 8, f"{i:08d}".encode()) for i in range(200))
    end = struct.pack("<4sHHHHIIH", END, 0, 0, 200, 200, len(many), start, 0)
    return body[:start] + many + end


def nested():
    """Archives in archives, as 42.zip: the outer one is small for good."""
    inner = squeezed(zipfile.ZIP_DEFLATED, 32 << 20)
    for _ in range(4):
        inner = zipped(*((f"{i}.zip", inner) for i in range(16)))
    return inner


HOSTILE = {
    "up": lambda: zipped(("../evil", b"x")),
    "deep up": lambda: zipped(("a/b/../../../evil", b"x")),
    "up at the end": lambda: zipped(("a/..", b"x")),
    "two dots": lambda: zipped(("..", b"x")),
    "absolute": lambda: zipped(("/tmp/evil", b"x")),
    "absolute twice": lambda: zipped(("//tmp/evil", b"x")),
    "backslash": lambda: zipped(("..\\evil", b"x")),
    "drive": lambda: zipped(("C:evil", b"x")),
    "share": lambda: zipped(("\\\\host\\share\\evil", b"x")),
    "stream": lambda: zipped(("a:evil", b"x")),
    "root": lambda: zipped(("/", b"x")),
    "no name": lambda: zipped(("", b"x")),
    "link": lambda: zipped(("link", b"/etc/passwd", LINK)),
    "link then through it": lambda: zipped(("d", b"/tmp", LINK), ("d/evil", b"x")),
    "link that is a folder": lambda: zipped(("d/", b"/tmp", LINK), ("d/evil", b"x")),
    "link to itself": lambda: zipped(("a", b"a", LINK)),
    "fifo": lambda: zipped(("pipe", b"", stat.S_IFIFO | 0o644)),
    "device": lambda: zipped(("null", b"", stat.S_IFCHR | 0o644)),
    "block device": lambda: zipped(("disk", b"", stat.S_IFBLK | 0o644)),
    "socket": lambda: zipped(("s", b"", stat.S_IFSOCK | 0o644)),
    "unknown kind": lambda: zipped(("u", b"", 0o070000 | 0o644)),
    "set user id": lambda: zipped(("run", b"#!/bin/sh\n", stat.S_IFREG | 0o6777)),
    "twice": lambda: zipped(("a", b"1"), ("a", b"2")),
    "twice but for case": lambda: zipped(("a", b"1"), ("A", b"2")),
    "a file as a folder": lambda: zipped(("a", b"1"), ("a/b", b"2")),
    "a folder as a file": lambda: zipped(("a/b", b"1"), ("a", b"2")),
    "nothing": lambda: zipped(),
    "only folders": lambda: zipped(("a/", b"", stat.S_IFDIR | 0o755)),
    "a folder with content": lambda: zipped(("a/", b"\0" * (32 << 20)), ("b", b"x")),
    "only forks": lambda: zipped(("__MACOSX/._a", b"x")),
    "newline": lambda: zipped(("a\nb", b"x")),
    "escape": lambda: zipped(("a\x1b[2Jb", b"x")),
    "end of text": lambda: zipped(("a\0/../../evil", b"x")),
    "turned round": lambda: zipped(("a\u202egnp.exe", b"x")),
    "dot": lambda: zipped(("./a", b"x")),
    "empty part": lambda: zipped(("a//b", b"x")),
    "many slashes": lambda: zipped(("a////", b"x")),
    "long": lambda: zipped(("a" * 300, b"x")),
    "long in bytes": lambda: zipped(("\U0001f600" * 100, b"x")),
    "deep": lambda: zipped(("a/" * 40 + "b", b"x")),
    "option": lambda: zipped(("-rf", b"x"), ("--config=x", b"x")),
    "hidden": lambda: zipped((".bashrc", b"x"), (".git/hooks/post-checkout", b"x")),
    "bomb": lambda: squeezed(zipfile.ZIP_DEFLATED, 32 << 20),
    "bombs": lambda: zipped(*((f"{i}", b"\0" * (1 << 20)) for i in range(40))),
    "many": lambda: zipped(
        *((f"{i}", b"x" * 60_000) for i in range(200)), method=zipfile.ZIP_STORED
    ),
    "bzip2 bomb": lambda: squeezed(zipfile.ZIP_BZIP2, 128 << 20),
    "lzma bomb": lambda: squeezed(zipfile.ZIP_LZMA, 32 << 20),
    "overlapping": overlapping,
    "archives in archives": nested,
    "too many members": lambda: listed(archives.MOST + 1),
    "a long list": lambda: listed(archives.LIST // 50 + 1),
    "no archive": lambda: b"PK\x03\x04 nonsense",
    "empty": lambda: b"",
    "only an end": lambda: END,
    "cut short": lambda: PLAIN[:-40],
    "without its beginning": lambda: PLAIN[20:],
    "encrypted": lambda: changed(PLAIN, (CENTRAL, 8, b"\1"), (LOCAL, 6, b"\1")),
    "unknown method": lambda: changed(PLAIN, (CENTRAL, 10, b"\x63"), (LOCAL, 8, b"\x63")),
    "another name inside": lambda: changed(PLAIN, (LOCAL, 30, b"b")),
    "wrong sum": lambda: changed(PLAIN, (CENTRAL, 16, b"\0\0\0\0")),
    "broken body": lambda: changed(PLAIN, (LOCAL, 31, b"\xff\xff\xff")),
    "place beyond the end": lambda: changed(PLAIN, (CENTRAL, 42, b"\xff\xff\xff\x7f")),
    "list beyond the end": lambda: changed(PLAIN, (END, 12, b"\xff\xff\xff\x7f")),
    "list before the beginning": lambda: changed(PLAIN, (END, 16, b"\xff\xff\xff\x7f")),
    "a small size": lambda: changed(
        squeezed(zipfile.ZIP_DEFLATED, 32 << 20),
        (CENTRAL, 24, b"\x64\0\0\0"),
        (LOCAL, 22, b"\x64\0\0\0"),
    ),
    "a great size": lambda: changed(PLAIN, (CENTRAL, 24, b"\xfe\xff\xff\xff")),
    "a great packed size": lambda: changed(PLAIN, (CENTRAL, 20, b"\xfe\xff\xff\xff")),
    "a fault in the extra field": lambda: changed(
        zipped(("a" * 9, b"x")), (CENTRAL, 28, b"\5\0\4\0"), (CENTRAL, 51, b"\1\0\xff\0")
    ),
    "no text": lambda: changed(
        zipped(("\xe9" * 4, b"x")), (CENTRAL, 46, b"\xff\xfe"), (LOCAL, 30, b"\xff\xfe")
    ),
}
SAFE = {
    "set user id", "a folder with content", "end of text", "option", "hidden",
    "archives in archives", "a great size",
}  # fmt: skip
"""What is taken all the same: it does no harm."""
if "_end_offset" not in zipfile.ZipInfo.__slots__:
    SAFE |= {"a great packed size"}  # Python since 3.11.8 sees that members would overlap


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """Unpacks bytes; what there was on the disk at most, and whether it was taken."""
    peak = [0]
    remove = archives.remove_tree

    def size(folder):
        return sum(one.lstat().st_size for one in folder.rglob("*") if one.is_file())

    def watched(folder):
        peak[0] = max(peak[0], size(folder))
        remove(folder)

    monkeypatch.setattr(archives, "remove_tree", watched)
    (tmp_path / "in").mkdir()

    def unpack(content, room=ROOM):
        archive, into = tmp_path / "a.zip", tmp_path / "in/out"
        archive.write_bytes(content)
        peak[0] = 0
        try:
            taken = archives.unpack(archive, into, room)
        except UserError:
            assert list(into.parent.iterdir()) == []
            return peak[0], False
        assert taken == size(into.parent)
        for one in into.parent.rglob("*"):
            assert stat.S_ISREG(one.lstat().st_mode) or stat.S_ISDIR(one.lstat().st_mode)
            assert one.is_dir() or not one.stat().st_mode & 0o7111
        remove(into)
        return taken, True

    return unpack


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_or_safe(tmp_path, unpacked, name):
    held, taken = unpacked(HOSTILE[name]())
    assert held <= ROOM and taken == (name in SAFE)
    left = {one.name for one in tmp_path.rglob("*")}
    assert left == {"a.zip", "in"} and not list(tmp_path.parent.glob("evil*"))


def test_control_without_the_looks_they_do_harm(tmp_path, unpacked, monkeypatch):
    assert len(HOSTILE) >= 40
    assert unpacked(HOSTILE["bombs"](), 1 << 40) == (40 << 20, True)  # room is what stops it
    monkeypatch.setattr(
        archives, "checked_name", lambda member: PurePosixPath(member.filename or "x")
    )
    unpacked(HOSTILE["up"]())
    assert (tmp_path / "in/evil").is_file()  # beside the folder


MEASURE = """
import re, sys
from pathlib import Path
from core.errors import UserError
from launch import archives
def peak():  # KiB
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        archives.unpack(path, Path(sys.argv[2]), 10 << 20)
    except UserError:
        pass
print((peak() - before) // 1024)
"""


def memory(folder, script):
    words = [sys.executable, "-c", script, str(folder), str(folder.parent / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout)  # MiB


def test_no_archive_takes_much_memory(tmp_path):
    heavy = {"bzip2 bomb", "lzma bomb", "a long list", "bomb"}
    (tmp_path / "all").mkdir()
    for name in heavy:
        (tmp_path / "all" / f"{name}.zip").write_bytes(HOSTILE[name]())
    assert memory(tmp_path / "all", MEASURE) < 256
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.zip").write_bytes(HOSTILE["bzip2 bomb"]())
    plain = "archives.TAKEN = (0, 8, 12)\nbefore = peak()"  # control
    assert memory(tmp_path / "one", MEASURE.replace("before = peak()", plain)) > 128


# An owner's room


def test_what_archives_unpack_to_counts_for_their_owner(tmp_path):
    with house(tmp_path / "root") as (service, client):
        mine, quota = bearer(service), service.files.quota
        service.supervisor.checker = InProcess()
        half = zipped(("a", b"\0" * (quota // 2)))
        states = []
        for _ in range(3):
            file_id = sent(client, mine, "a.zip", half).json()["id"]
            job_id = service.jobs.create_job(row_of(uses=[file_id]))[0]["id"]
            for _ in range(2):  # of an archive that is unpacked already nothing more is taken
                service.supervisor.check(job_id)
                job_id = service.jobs.create_job(row_of(uses=[file_id]))[0]["id"]
            states.append(service.jobs.jobs("ada", None, 2).rows[1]["state"])
        assert states == [State.QUEUED, State.FAILED, State.FAILED]
        held = sum(one.stat().st_size for one in (service.root / "files").rglob("*"))
        assert held < quota * 1.1
        assert sent(client, mine, content=b"x" * (quota // 2)).status_code == 413
        small = b"x" * (1 << 20)
        assert [sent(client, mine, content=small[:-900]).status_code for _ in range(3)][0] == 200
        assert sent(client, bearer(service, "bob"), "a.zip", half).status_code == 200


class InProcess:
    def ask(self, what, archive, into, room):
        return archives.unpack(archives.Path(archive), archives.Path(into), room)

    def close(self):
        pass


def test_uploads_that_come_at_once_share_their_owners_room(tmp_path, monkeypatch):
    def held():
        with house(tmp_path / f"root{len(list(tmp_path.iterdir()))}") as (service, client):
            mine = bearer(service)
            big = b"x" * (1000 << 10)  # of 4 MiB
            parts = [service.files.incoming("ada") for _ in range(12)]

            def write(part):
                try:
                    for i in range(0, len(big), 10_000):
                        part.write(big[i : i + 10_000])
                    return service.files.keep(part, "ada", "p.txt", "fine-tune")
                except UserError:
                    return None
                finally:
                    part.close()

            with ThreadPoolExecutor(12) as pool:
                kept = [one for one in pool.map(write, parts) if one]
            assert list((service.root / "incoming").iterdir()) == []
            room = service.files.room("ada")
            again = sent(client, mine, content=b"x" * max(0, min(room, 1 << 19))).status_code
            return len(kept), room >= 0 and again == 200

    kept, within = held()
    assert kept <= 4 and within
    monkeypatch.setattr(Room, "take", lambda self, size: True)  # control
    assert held() == (12, False)


# Ordinary ones


def test_what_is_in_its_place_is_on_the_disk(tmp_path, monkeypatch):
    """A folder that is there is believed, also after a power loss."""
    (tmp_path / "a.zip").write_bytes(zipped(("d/a", b"x"), ("d/b", b"y")))
    written = []

    def sync():
        assert not (tmp_path / "out").exists()
        written.extend(one.read_bytes() for one in sorted(tmp_path.glob(".out.staging/d/*")))

    monkeypatch.setattr(archives.os, "sync", sync)
    archives.unpack(tmp_path / "a.zip", tmp_path / "out", 1 << 20)
    assert written == [b"x", b"y"] and (tmp_path / "out/a").is_file()


@pytest.mark.parametrize("year", [0, 200])  # after 1970
def test_a_time_that_no_archive_can_say_is_no_fault(tmp_path, year):
    source = tmp_path / "labels"
    source.mkdir()
    (source / "a").write_text("a")
    os.utime(source / "a", times=(year * 366 * 86400,) * 2)
    archives.pack(source, tmp_path / "a.zip")
    archives.unpack(tmp_path / "a.zip", tmp_path / "out", 1 << 20)
    assert (tmp_path / "out/a").read_text() == "a"


@pytest.mark.parametrize("target", ["../secret", "sound", "..", "nowhere"])
def test_a_link_is_not_followed_out_of_the_folder(tmp_path, target):
    (tmp_path / "secret").write_text("x")
    source = tmp_path / "labels"
    source.mkdir()
    (source / "sound").write_text("a")
    archives.pack(source, tmp_path / "a.zip")  # control
    (source / ".hidden").symlink_to(target)
    archives.pack(source, tmp_path / "a.zip")
    (source / "link").symlink_to(target)
    with pytest.raises(UserError, match="link is a link"):
        archives.pack(source, tmp_path / "a.zip")


def test_a_folder_goes_out_and_comes_back(tmp_path):
    source = tmp_path / "labels"
    for name in ("images/a.png", "masks/a.png", ".hidden", "images/.part"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    archives.pack(source, tmp_path / "a.zip")
    archives.unpack(tmp_path / "a.zip", tmp_path / "out", 1 << 20)
    found = sorted(one.relative_to(tmp_path / "out").as_posix()
                   for one in (tmp_path / "out").rglob("*") if one.is_file())  # fmt: skip
    assert found == ["images/a.png", "masks/a.png"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["labels/images/a", "labels/masks/a"], {"images", "masks"}),
        (["images/a"], {"images"}),
        (["a", "d/b"], {"a", "d"}),
        (["d/a", "__MACOSX/d/._a"], {"a"}),
    ],
)
def test_a_single_outer_folder_is_left_out(tmp_path, names, found):
    (tmp_path / "a.zip").write_bytes(zipped(*((name, b"x") for name in names)))
    archives.unpack(tmp_path / "a.zip", tmp_path / "out", 1 << 20)
    assert {one.name for one in (tmp_path / "out").iterdir()} == found
