"""PAL4VST in: images/{train,val,test}/ and labels/{train,val,test}/*.png; labelled images out."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.image_files import open_image
from data_balancing.entries import Entry, Labelled
from data_balancing.formats.files import by_stem, only, printable, read_levels, require_size, walk

WHAT = "images/{train,val,test}/*.jpg and labels/{train,val,test}/*.png of the same stem"
SPLITS = ("train", "val", "test")


def read(root: Path, images: Path | None = None) -> Iterator[Entry]:
    """Where a split has a class 1, 255 is ignored and counts as sound; else 255 is the artifact."""
    splits = [split for split in SPLITS if (root / "labels" / split).is_dir()]
    if not splits:
        raise UserError(f"{root} is no PAL4VST: it needs {WHAT}.")
    for split in splits:
        labels = by_stem(walk(root / "labels" / split, (".png",), deep=False))
        folder = (images or root / "images") / split
        pictures = by_stem(walk(folder, deep=False) if folder.is_dir() else [])
        artifact = _artifact(path for _, paths in sorted(labels.items()) for path in paths)
        for stem in sorted({*labels, *pictures}):
            one = partial(_read, pictures, labels, stem, artifact)
            yield Entry(printable(f"{split}/{stem}"), one)


def _artifact(labels: Iterable[Path]) -> int:
    """1 if any label of the split has it, else 255; what is damaged says so when it is read."""
    for path in labels:
        try:
            if (_classes(path) == 1).any():
                return 1
        except UserError:
            continue
    return 255


def _read(pictures: dict, labels: dict, stem: str, artifact: int) -> Labelled:
    path, label = only(pictures, stem, "image"), only(labels, stem, "label")
    classes = _classes(label)
    other = np.setdiff1d(classes, [0, 1, 255])
    if other.size:
        raise UserError(f"{label} has a class {other[0]} where 0, 1 and 255 are known; mend it.")
    image = read_levels(path)
    require_size(classes.shape, image, stem)
    mask = np.where(classes == artifact, 255, 0).astype(np.uint8)
    return Labelled(image, mask, {"source": "human"})


def _classes(path: Path) -> np.ndarray:
    """Class of each pixel (h, w): the levels of a gray picture, the indices of a palette."""
    picture = open_image(path, ("PNG",))
    if picture.mode not in ("L", "P", "1") and not picture.mode.startswith("I"):
        raise UserError(f"{path} is a {picture.mode} picture, no classes; save it as gray.")
    return np.asarray(picture).astype(np.int32)
