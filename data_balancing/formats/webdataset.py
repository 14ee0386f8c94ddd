"""Tars as webdataset streams them in, which have no index of ours; their images and masks out.

The members of a sample stand one after the other and have one name up to the first dot of the file
name: an image, and where there are any `{key}.mask.png`, `{key}.reference.png` (the sound image
that it was made from), `{key}.json` (fields of a record) and `{key}.txt` (its prompt).
"""

import json
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from core.errors import UserError
from core.image_files import MAX_BYTES, SUFFIXES, decode_image, flatten, mask_of
from core.samples import Record
from core.shard_index import MAX_RECORD_BYTES
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import once, printable, refused
from data_balancing.formats.plain import require_shape, said_of

WHAT = ".tar files of {key}.jpg or .png, {key}.mask.png (none: unlabelled), {key}.json, {key}.txt"
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
"""A member's key and kind, as webdataset splits its name; other members are not read."""
IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
UNLABELLED = {"source": "pseudo"}
SOURCES = get_args(Record.model_fields["source"].annotation)


class Member(NamedTuple):
    """Where one lies in its tar."""

    kind: str
    offset: int
    size: int


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    """Nobody has labelled an image without a mask, unless its JSON says that it is real."""
    files = [root] if root.is_file() else sorted(root.rglob("*.tar"))
    if not files:
        raise UserError(f"{root} is no folder of webdataset tars: it needs {WHAT}.")
    yield from once(entry for file in files for entry in _entries(root, file))


def _entries(root: Path, file: Path) -> Iterator[Entry]:
    """One for each sample; where a header is wrong the next member cannot be found."""
    name = printable(file.stem if file == root else str(file.relative_to(root).with_suffix("")))
    key, members = "", list[Member]()
    try:
        for found, member in _members(file):
            if members and found != key:
                yield Entry(f"{name}:{key}", partial(_read, file, f"{file}:{key}", members))
                members = []
            key, members = found, [*members, member]
    except UserError as error:
        yield refused(name, str(error))
    if members:
        yield Entry(f"{name}:{key}", partial(_read, file, f"{file}:{key}", members))


def _members(file: Path) -> Iterator[tuple[str, Member]]:
    """Key and place of each member that has both a key and a kind."""
    try:
        with tarfile.open(file, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # pyright: ignore  # else it keeps all of them
                split = NAME.fullmatch(member.name)
                if split and member.isreg() and not member.issparse():
                    kind = split[2].lower()
                    yield printable(split[1]), Member(kind, member.offset_data, member.size)
            end = tar.offset
        with file.open("rb") as stream:
            stream.seek(end)
            mark = stream.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{file} is damaged or no tar ({error}); download it again.") from error
    if mark != bytes(tarfile.BLOCKSIZE):  # tarfile takes a header that it cannot read for the end
        raise UserError(f"{file} is damaged or cut off at byte {end}; download it again.")


def _read(file: Path, name: str, members: list[Member]) -> Labelled:
    held = {member.kind: member for member in members}
    kind = next((kind for kind in IMAGES if kind in held), None)
    if kind is None:
        raise UserError(
            f"{name} has no image ({', '.join(IMAGES)}): add it, and let the members of a sample "
            "stand one after the other (tar --sort=name)."
        )
    if len(held) < len(members):
        raise UserError(f"{name} has two members of one kind: keep one.")
    image = _levels(file, name, held[kind])
    said = _said(file, name, held)
    mask = np.zeros(image.shape[:2], np.uint8) if said["source"] == "real" else None
    if "mask.png" in held:
        of_mask = f"the mask of {name}"
        mask = mask_of(decode_image(_content(file, name, held["mask.png"]), of_mask), of_mask)
        require_shape(mask, image, name)
    reference = None
    if mask is not None and "reference.png" in held:
        reference = _levels(file, name, held["reference.png"])
        if reference.shape != image.shape:
            raise UserError(f"the reference of {name} is of another size: put the right one there.")
    return Labelled(image, mask, said if mask is not None else said | UNLABELLED, reference)


def _said(file: Path, name: str, held: dict[str, Member]) -> dict[str, Any]:
    """What the JSON and the text say; a `source` that is none of ours is an address, say."""
    said: dict[str, Any] = {}
    if "txt" in held:
        text = _content(file, name, held["txt"], MAX_RECORD_BYTES).decode(errors="replace")
        said["prompt"] = text.strip()
    if "json" in held:
        try:
            given = json.loads(_content(file, name, held["json"], MAX_RECORD_BYTES))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}.json is no JSON ({error}); mend it.") from error
        if not isinstance(given, dict):
            raise UserError(f"{name}.json is no JSON object; mend it.")
        said |= given
    if said.get("source") not in SOURCES:
        said["source"] = "human"
    return said_of(said, name)


def _levels(file: Path, name: str, member: Member) -> np.ndarray:
    content = _content(file, name, member)
    return np.array(flatten(decode_image(content, f"{name}.{member.kind}")))


def _content(file: Path, name: str, member: Member, most: int = MAX_BYTES) -> bytes:
    if member.size > most:
        raise UserError(f"{name}.{member.kind} is larger than {most} bytes; shrink it.")
    try:
        with file.open("rb") as stream:
            stream.seek(member.offset)
            content = stream.read(member.size)
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}); check the path.") from error
    if len(content) < member.size:
        raise UserError(f"{name}.{member.kind} is cut off; download {file} again.")
    return content
