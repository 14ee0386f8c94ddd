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


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
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
