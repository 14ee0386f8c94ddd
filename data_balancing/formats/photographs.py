"""Any folder of real photographs in, with all below it; the same with all-zero masks out.

So FFHQ, CelebA-HQ, Flowers 102, ImageNet and LSUN come in as they are laid out; of LSUN what its
own `data.py export` (github.com/fyu/lsun) made of an LMDB, which is not read itself.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from core.errors import UserError
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import printable, read_levels, walk

WHAT = "any folder of photographs, in subfolders too; none of them generated"

LMDB = ".mdb"
LABELS = ("masks", "labels", "annotations")
"""Folders beside `images` that say that not all of these are sound."""


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    marked = [name for name in LABELS if (root / name).is_dir() and (root / "images").is_dir()]
    if marked:
        raise UserError(
            f"{root} holds images/ and {marked[0]}/: a set with labels, whose artifacts would come "
            "in as sound. Import it as `plain` (or pal4vst), or name a folder of photographs in it."
        )
    paths = walk(root)
    first = next(paths, None)
    if first is None and next(walk(root, (LMDB,)), None) is not None:
        raise UserError(
            f"{root} is an LMDB, as LSUN is published: export it with LSUN's own program "
            f"(`python2.7 data.py export {root} --out_dir FOLDER`) and give that folder."
        )
    if first is None:
        raise UserError(f"there is no image in {root} or below; check the path.")
    for path in chain([first], paths):
        yield Entry(printable(str(path.relative_to(root))), partial(_read, path))


def _read(path: Path) -> Labelled:
    image = read_levels(path)
    return Labelled(image, np.zeros(image.shape[:2], np.uint8), {"source": "real"})
