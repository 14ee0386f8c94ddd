"""Strangers' files in, checked values, pictures and masks out; what is wrong is a `UserError`.

Legend: h w pixels.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import numpy as np
from jaxtyping import UInt8
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from core.errors import UserError
from core.image_files import SUFFIXES, flatten, open_image
from data_balancing.entries import Entry

MAX_JSON = 512 << 20
"""Bytes; the largest published annotations are a fifth of it."""

Levels = UInt8[np.ndarray, "h w 3"]
Mask = UInt8[np.ndarray, "h w"]


def _encodable(text: str) -> str:
    text.encode()  # half a surrogate pair, which JSON can spell, raises a ValueError
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Strict(BaseModel):
    """A record as a set's own tool wrote it: no text for a number, other fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


Checked = TypeVar("Checked", bound=Strict)


def checked(kind: type[Checked], value: Any, name: str) -> Checked:
    """`value` as a record; `name` is what errors call it."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "all of it"
        raise UserError(
            f"{name} is not as this format has it ({place}: {fault['msg']}); mend or remove it."
        ) from error


def read_json(path: Path) -> Any:
    """What a JSON file of at most `MAX_JSON` bytes holds."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise UserError(f"{path} is larger than {MAX_JSON} bytes; split it into parts.")
        if not path.is_file():
            raise UserError(f"{path} is no file; put the annotations there.")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON ({error}); download it again.") from error


def rows(value: Any, what: str) -> list[Any]:
    """The list at the top of an annotation file; `UserError` where it is none, or empty."""
    if not isinstance(value, list):
        kind = type(value).__name__
        raise UserError(f"{what} is a {kind} where a list should be; check the path.")
    if not value:
        raise UserError(f"{what} is empty; check the path.")
    return value


def inside(folder: Path, text: str) -> Path:
    """The file that a set names by a path, followed through links: it must lie in the folder."""
    try:
        path, whole = (folder / text).resolve(), folder.resolve()
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{printable(text)!r} is no path ({error}); mend it.") from error
    if not path.is_relative_to(whole):
        raise UserError(f"{printable(text)!r} leads out of {folder}; name files inside of it.")
    if not there:
        raise UserError(f"there is no file {printable(text)!r} in {folder}; add it.")
    return path


def walk(folder: Path, suffixes: Collection[str] = SUFFIXES, deep: bool = True) -> Iterator[Path]:
    """The files in a folder (and below), by name; hidden ones and links to folders are left out."""
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read {folder} ({error.strerror}); check the path.") from error
    for entry in found:
        if entry.name.startswith("."):
            continue
        if deep and entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path), suffixes)
        elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():
            yield Path(entry.path)


def by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.stem, []).append(path)
    return found


def only(found: dict[str, list[Path]], stem: str, kind: str) -> Path:
    """The one file of that stem."""
    paths = found.get(stem, [])
    if not paths:
        raise UserError(f"{printable(stem)} has no {kind}: add the file, or remove the rest of it.")
    if len(paths) > 1:
        raise UserError(f"{printable(stem)} has two {kind}s, {paths[0]} and {paths[1]}: keep one.")
    return paths[0]


def printable(name: str) -> str:
    """A name that can be written down: what is no Unicode is spelt out."""
    return name.encode(errors="backslashreplace").decode()


def once(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same, each name printable and there once: the second `a` is called `a (2)`."""
    seen: set[str] = set()
    for entry in entries:
        name = first = printable(entry.name) or "(no name)"
        count = 1
        while name in seen:
            count += 1
            name = f"{first} ({count})"
        seen.add(name)
        yield Entry(name, entry.read)


def refused(name: str, reason: str) -> Entry:
    """What is there but cannot be used: its reader says why."""
    return Entry(name, partial(_refuse, reason))


def _refuse(reason: str) -> NoReturn:
    raise UserError(reason)


def read_levels(path: Path) -> Levels:
    """A picture file as RGB levels, oriented, laid on white."""
    return np.array(flatten(open_image(path)))


def require_size(shape: tuple[int, ...], image: np.ndarray, name: str) -> None:
    """The mask's (h, w) must be the image's."""
    if shape != image.shape[:2]:
        sizes = [f"{side[1]}x{side[0]}" for side in (shape, image.shape)]
        raise UserError(
            f"the mask of {printable(name)} is {sizes[0]} pixels, its image {sizes[1]}: "
            "one of them is another's; put the right one there."
        )
