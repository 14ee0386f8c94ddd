"""A plain folder in, as the detector is trained from (see detector.sources); its images out.

images/ with masks/ of the same stem, images/ without one (nobody has labelled them yet), real/
(sound photographs) and references/ (the sound image that a labelled one of the same stem was made
from); `prompts.jsonl` and `records.jsonl` say more of them.
"""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from core.errors import UserError
from core.image_files import SUFFIXES, mask_levels
from core.samples import Record
from data_balancing.entries import Entry, Labelled, same_shape
from data_balancing.formats.files import MAX_JSON, printable, read_levels, refused, walk
from detector.sources import beside, known_records

WHAT = "images/ and masks/ of the same stem (no mask: unlabelled), real/ for sound photographs"
FOREIGN = (".tif", ".tiff", ".bmp", ".gif", ".jp2", ".jfif", ".avif", ".heic")
"""Endings of pictures that are not read."""
SAID = ("source", "category", "prompt", "generator", "seed", "licence", "caption")


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    """What the two files say stands, but what nobody has labelled is always "pseudo"."""
    parts = [part for part in ("images", "real") if (root / part).is_dir()]
    if not parts:
        raise UserError(f"{root} is no plain folder: it needs {WHAT}.")
    known = _known(root)
    for part in parts:
        taken: dict[str, str] = {}
        for path in walk(root / part, deep=False):
            name = printable(f"{part}/{path.name}")
            twin = taken.setdefault(path.stem, path.name)
            if part == "images" and twin != path.name:
                yield refused(name, f"it has the stem of {twin}, and so its mask: rename both.")
                continue
            given = known.get(path.name) or known.get(path.stem) or {}
            yield Entry(name, partial(_read, root, path, part, given))
    yield from (refused(name, reason) for name, reason in strays(root))


def strays(root: Path) -> Iterator[tuple[str, str]]:
    """Files of a plain folder that nobody would read, by name, each with its cure."""
    stems = {path.stem for path in _files(root, "images", SUFFIXES)}
    for part in ("images", "real", "masks", "references"):
        for path in _files(root, part, FOREIGN):
            yield printable(f"{part}/{path.name}"), f"save it as one of {', '.join(SUFFIXES)}."
    for part in ("masks", "references"):
        for path in _files(root, part, SUFFIXES):
            if path.stem not in stems:
                reason = f"no image is called {printable(path.stem)}: rename it as its image."
                yield printable(f"{part}/{path.name}"), reason


def _files(root: Path, part: str, suffixes: Collection[str]) -> Iterator[Path]:
    return walk(root / part, suffixes, deep=False) if (root / part).is_dir() else iter(())


def _known(root: Path) -> dict[str, dict]:
    try:
        for name in ("prompts.jsonl", "records.jsonl"):
            if (root / name).exists() and (root / name).stat().st_size > MAX_JSON:
                raise UserError(f"{root / name} is larger than {MAX_JSON} bytes; shorten it.")
        return known_records(root)
    except OSError as error:
        raise UserError(f"what is said in {root} cannot be read ({error}); mend it.") from error


def _read(root: Path, path: Path, part: str, given: dict[str, Any]) -> Labelled:
    label = beside(root, "masks", path) if part == "images" else None
    unlabelled = part == "images" and label is None
    source = "real" if part == "real" else "human"
    said = {"source": source, **given, **({"source": "pseudo"} if unlabelled else {})}
    image = read_levels(path)
    mask = None if unlabelled else np.zeros(image.shape[:2], np.uint8)
    if label is not None:
        mask = mask_levels(label)
        require_shape(mask, image, str(path))
    reference = None if label is None else _reference(root, path, image)
    return Labelled(image, mask, said_of(said, str(path)), reference)


def _reference(root: Path, path: Path, image: np.ndarray) -> np.ndarray | None:
    found = beside(root, "references", path)
    reference = None if found is None else read_levels(found)
    if reference is not None and reference.shape != image.shape:
        raise UserError(f"{found} is of another size than {path}; put the right one there.")
    return reference


def said_of(given: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields of a record among them, checked; `name` is what errors call the image."""
    said = {field: value for field, value in given.items() if field in SAID}
    try:
        record = Record(key="any", **said)
        record.model_dump_json()  # half a surrogate pair, which JSON can spell, ends here
    except ValueError as error:
        fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(f"what is said of {name} is no record ({fault}); mend its line.") from error
    return {field: getattr(record, field) for field in said}


def require_shape(mask: np.ndarray, image: np.ndarray, name: str) -> None:
    """A mask may be smaller than its image, as detectors write them, but not of another shape."""
    (y, x), (h, w) = mask.shape, image.shape[:2]
    if not same_shape((y, x), (h, w)):
        raise UserError(
            f"the mask of {name} is {x}x{y} pixels, its image {w}x{h}: that is another shape; "
            "put the right one there."
        )
