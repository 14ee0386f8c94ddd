"""IMDL-BenCo's JSON in, [[image, mask or "Negative"], ...]; labelled images out."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.image_files import gray, open_image
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import (
    inside,
    once,
    read_json,
    read_levels,
    refused,
    require_size,
    rows,
)

WHAT = 'a JSON of [[image, mask or "Negative"], ...], or a folder of such; paths from its folder'
NEGATIVE = "Negative"
CUT = 128
"""The set's tools cut at 127.5."""


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    """Paths start at the JSON's folder, or at `images`; "Negative" is an untouched photograph."""
    files = [root] if root.is_file() else sorted(root.glob("*.json"))
    if not files:
        raise UserError(f"{root} is no set of IMDL-BenCo: it needs {WHAT}.")
    parts = [(file, rows(read_json(file), str(file))) for file in files]
    return once(
        _entry(pair, number, images or file.parent, file.stem)
        for file, pairs in parts
        for number, pair in enumerate(pairs)
    )


def _entry(pair: Any, number: int, folder: Path, of: str) -> Entry:
    texts = isinstance(pair, list) and all(isinstance(part, str) for part in pair)
    if not texts or len(pair) != 2:
        reason = f'pair {number} of {of} is no [image, mask or "Negative"]; mend or remove it.'
        return refused(f"{of}:{number}", reason)
    name = pair[0].removeprefix(f"{folder.resolve()}/")  # not where the set lies today
    return Entry(name, partial(_read, folder, *pair))


def _read(folder: Path, path: str, label: str) -> Labelled:
    image = read_levels(inside(folder, path))
    if label == NEGATIVE:
        return Labelled(image, np.zeros(image.shape[:2], np.uint8), {"source": "real"})
    mask = gray(open_image(inside(folder, label)))
    require_size(mask.shape, image, path)
    return Labelled(image, np.where(mask >= CUT, 255, 0).astype(np.uint8), {"source": "human"})
