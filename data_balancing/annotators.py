"""Annotations in; every annotator's mask as a file beside the shards, and back by image, out.

annotators/NAME/KEY.png   8-bit gray, 0..255
annotations.jsonl         one line a mask: key, annotator, when, tool, seconds
"""

import json
from collections.abc import Container, Iterable
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.image_files import decode_image, encode_png
from core.samples import safe_key
from core.storage import append_line, read_lines, write_atomic
from data_balancing.annotation.cases import Annotation, Mask, read_capped

LINES = "annotations.jsonl"


def keep(annotations: Iterable[Annotation], out: Path, finished: Container[str]) -> int:
    """Write masks that are not there yet, each before its line; the number of new ones.

    Raises `UserError` for a mask that is there and differs, and for a new mask of an image whose
    label is `finished`: neither may be lost in silence.
    """
    known = {(line["key"], line["annotator"]) for line in read_lines(out / LINES)}
    added = 0
    for one in annotations:
        path = out / "annotators" / safe_key(one.annotator) / f"{one.key}.png"
        if (one.key, one.annotator) in known:
            _check_same(path, one)
            continue
        if one.key in finished:
            raise UserError(
                f"the label of {one.key} in {out} is finished without {one.annotator}; read all "
                "exports (they may lie in one folder) into a new --out."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, encode_png(one.mask))
        append_line(out / LINES, json.dumps(_line(one)))
        known.add((one.key, one.annotator))
        added += 1
    return added


def kept(out: Path) -> dict[str, dict[str, Path]]:
    """The files of the masks by key and annotator."""
    found: dict[str, dict[str, Path]] = {}
    for line in read_lines(out / LINES):
        path = out / "annotators" / safe_key(line["annotator"]) / f"{line['key']}.png"
        found.setdefault(line["key"], {})[line["annotator"]] = path
    return found


def read_masks(paths: dict[str, Path]) -> dict[str, Mask]:
    return {name: _mask(path) for name, path in paths.items()}


def _line(one: Annotation) -> dict:
    said = one._asdict()
    del said["mask"]
    return said


def _mask(path: Path) -> Mask:
    return np.array(decode_image(read_capped(path), str(path)).convert("L"))


def _check_same(path: Path, one: Annotation) -> None:
    if not np.array_equal(_mask(path), one.mask):
        raise UserError(
            f"{one.annotator} has marked {one.key} otherwise than {path}; read the exports into a "
            "new --out, or keep one mask of each person."
        )
