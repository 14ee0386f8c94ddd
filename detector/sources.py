"""Shard stores and plain folders in, their samples and records out, each read on demand.

A plain folder holds `images/`, `masks/` (same stem, 8-bit gray, 0..255 soft), `real/` (sound
photographs, their label is zero) and, if known, `references/` (same stem: the sound image that one
was made from) and `prompts.jsonl` or `records.jsonl` with one object a line: `file` or `key`, and
any field of a record. An image without a mask is unlabelled and passed over, unless none is needed;
so is a sample of a store that has no mask and is not real.

Nothing here needs torch, which takes more memory than a million samples. Legend: h w pixels.
"""

import bisect
import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from pydantic import ValidationError

from core.errors import UserError
from core.image_files import SUFFIXES, flatten, list_images, mask_levels, open_image
from core.samples import Record, Sample, safe_key
from core.shards import ShardStore, no_store

T = TypeVar("T")


class FolderSamples(Sequence[Sample]):
    """The images of a plain folder, read on demand; `masked`: those alone that have a label."""

    def __init__(self, folder: Path, masked: bool = True):
        folder = Path(folder)
        self.folder, self.unlabelled = folder, 0
        self._known = known_records(folder)
        made = self._pairs("images")
        self._files = [(path, mask, True) for path, mask in made if mask is not None or not masked]
        self._files += [(path, None, False) for path, _ in self._pairs("real")]
        if not (self._files or masked):
            raise UserError(f"{folder} has no image in images/ or real/; put some there.")
        if not self._files:
            raise UserError(
                f"{folder} has no labelled image; put masks with the same names as images/ into "
                "masks/, or sound photographs into real/."
            )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i):  # type: ignore[override]
        path, mask, made = self._files[i]
        image, record = levels_of(path), self.record(i)
        if mask is None:
            sound = None if made else np.zeros(image.shape[:2], np.uint8)
            return Sample(record.key, image, sound, record)
        reference = beside(self.folder, "references", path) if record.referenced else None
        sound = None if reference is None else levels_of(reference)
        return Sample(record.key, image, mask_levels(mask), record, sound)

    def records(self) -> list[Record]:
        return [self.record(i) for i in range(len(self))]

    def record(self, i: int) -> Record:
        path, mask, made = self._files[i]
        key = safe_key(path.stem if made else f"real-{path.stem}")
        given = self._known.get(path.name) or self._known.get(path.stem) or {}
        referenced = mask is not None and beside(self.folder, "references", path) is not None
        found = {"key": key, "referenced": referenced}
        try:
            return Record(**{"source": "human" if made else "real", **given, **found})
        except ValidationError as error:
            fault = error.errors()[0]
            raise UserError(
                f"{self.folder}: what is said of {path.name} is no record "
                f"({fault['loc'][0]}: {fault['msg']}); mend its line."
            ) from error

    def _pairs(self, name: str) -> list[tuple[Path, Path | None]]:
        if not (self.folder / name).is_dir():
            return []
        pairs = [(p, beside(self.folder, "masks", p)) for p in list_images(self.folder / name)]
        self.unlabelled += sum(mask is None for _, mask in pairs) if name == "images" else 0
        return pairs


class Chosen(Sequence[T]):
    """Some items of a longer sequence, by their positions in it."""

    def __init__(self, samples: Sequence[T], positions: Sequence[int]):
        self.samples, self.positions = samples, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i):  # type: ignore[override]
        return self.samples[self.positions[i]]


class LabelledShards(Chosen[Sample]):
    """What a detector can learn from of a store: what has a mask, and what is real."""

    def __init__(self, store: ShardStore):
        bare = (i for i in range(len(store)) if not store.has_mask(i))
        without = {i for i in bare if store.record(i).source != "real"}
        if len(without) == len(store):
            raise UserError(
                f"{store.folder} has no labelled sample; label it with `diffdoctor data "
                "pseudo-label`, or by people (`diffdoctor data annotate`)."
            )
        super().__init__(store, [i for i in range(len(store)) if i not in without])
        self._records = store.records()

    def records(self) -> Chosen[Record]:
        return Chosen(self._records, self.positions)


class Joined(Sequence[T]):
    """Several sequences, or stores, one after the other."""

    def __init__(self, sources: Sequence[Any]):
        self.sources = sources
        self.starts = [0, *accumulate(map(len, sources))]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, i):  # type: ignore[override]
        i = range(len(self))[i]  # from the end, where negative
        which = bisect.bisect_right(self.starts, i) - 1
        return self.sources[which][i - self.starts[which]]


def open_data(
    paths: Sequence[Path], masked: bool = True
) -> tuple[Sequence[Sample], Sequence[Record]]:
    """All samples of several stores or folders, and their records, each read on demand.

    `masked`: only what has a mask or is real. Raises `UserError` for what is no data.
    """
    if not paths:
        raise UserError(
            "no data was given; name a shard folder or a folder with images/ and masks/."
        )
    sources = [open_source(Path(path), masked) for path in paths]
    samples, records = Joined(sources), Joined([source.records() for source in sources])
    if not len(samples):
        raise UserError(f"{', '.join(map(str, paths))} holds no sample; fill it first.")
    return samples, records


def open_source(path: Path, masked: bool = True) -> "ShardStore | LabelledShards | FolderSamples":
    if path.is_file():
        raise UserError(f"{path} is a file; name the folder of its store, or with images/ in it.")
    if not path.is_dir():
        raise UserError(f"there is no data folder {path}; check the path.")
    if any(path.glob("*.manifest.jsonl")):
        return LabelledShards(ShardStore(path)) if masked else ShardStore(path)
    if (path / "images").is_dir() or (path / "real").is_dir():
        return FolderSamples(path, masked)
    if any(path.glob("*.tar")):
        raise no_store(path)
    raise UserError(
        f"{path} holds neither shards nor images/ and masks/ (or real/): bring a set into a store "
        "with `diffdoctor data import`."
    )


def levels_of(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    return np.array(flatten(open_image(path)))


def beside(folder: Path, kind: str, image: Path) -> Path | None:
    """The file of the image's stem in `folder/kind`."""
    found = [folder / kind / (image.stem + suffix) for suffix in SUFFIXES]
    return next((path for path in found if path.is_file()), None)


def known_records(folder: Path) -> dict[str, dict]:
    """What the two files say, by file name or key; fields that no record has are dropped."""
    known: dict[str, dict] = {}
    for name in ("prompts.jsonl", "records.jsonl"):
        for line in said_lines(folder / name):
            place = str(line.get("file", line.get("key", line.get("image", ""))))
            known[Path(place).name] = {
                key: value for key, value in line.items() if key in Record.model_fields
            }
    return known


def said_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that people write: `UserError` for a line that is none."""
    found = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}, is no JSON object: mend it, or take it out.")
        found.append(record)
    return found
