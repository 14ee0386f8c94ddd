"""Any folder of real photographs in, with all below it; the same with all-zero masks out."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from core.errors import UserError
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import printable, read_levels, walk

WHAT = "any folder of photographs, in subfolders too; none of them generated"


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    paths = walk(root)
    first = next(paths, None)
    if first is None:
        raise UserError(f"there is no image in {root} or below; check the path.")
    for path in chain([first], paths):
        yield Entry(printable(str(path.relative_to(root))), partial(_read, path))


def _read(path: Path) -> Labelled:
    image = read_levels(path)
    return Labelled(image, np.zeros(image.shape[:2], np.uint8), {"source": "real"})
