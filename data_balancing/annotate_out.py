"""Hand images to annotators: a shard store in; a folder that an annotation tool imports out.

    diffdoctor data annotate STORE --out FOLDER --tool label_studio --keys hard.txt

Each image goes out with a guess to correct: the map of a detector where one is named, else the mask
that the store holds. FOLDER/annotate.json says what was handed over; the same command again
does nothing once it is complete, and begins anew where it was stopped.
"""

import hashlib
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

import core.config
from core.contracts import Detector
from core.errors import UserError
from core.images import from_uint8
from core.samples import Sample
from core.shards import ShardStore, filled
from core.storage import check_writable, write_atomic
from data_balancing.annotation import TOOLS
from data_balancing.annotation.cases import ORDER, Case, Mask, read_json
from detector.data import to_tensors
from detector.measure import device, predict
from detector.segformer import freeze
from detector.storage import digest, load_detector


class Config(core.config.Config):
    """Settings of one hand-over."""

    store: Annotated[Path, tyro.conf.Positional, core.config.placed("STORE")]
    """A shard store with the images."""
    out: Path
    """Folder that the annotation tool reads."""
    tool: Literal["label_studio", "cvat", "coco", "png"]
    """What people paint with."""
    keys: Path | None = None
    """A text file with the key of one image a line; without it, all images."""
    detector: Path | None = None
    """Folder of the detector whose maps the annotators begin with."""
    device: str = "auto"
    """`auto`, or a torch device."""


def main(config: Config) -> None:
    store = filled(config.store)
    keys = store.keys if config.keys is None else read_keys(config.keys, store.keys)
    detector = None
    if config.detector is not None:
        detector = freeze(load_detector(config.detector)).to(device(config.device))
    order = {
        "tool": config.tool,
        "images": len(keys),
        "keys_sha256": hashlib.sha256("\n".join(keys).encode()).hexdigest(),
        "detector": None if config.detector is None else digest(config.detector),
    }
    if begin(config.out, order):
        print(f"{config.out} holds these {len(keys)} images already: nothing to do.")
        return
    path = TOOLS[config.tool].write(Cases(store, keys, detector), config.out)
    write_order(config.out, {**order, "complete": True})
    print(f"{len(keys)} images for {config.tool}: {path}")


class Cases(Sequence[Case]):
    """Images of a store with their guesses, each made when it is asked for."""

    def __init__(self, store: ShardStore, keys: Sequence[str], detector: Detector | None):
        place = {key: i for i, key in enumerate(store.keys)}
        self.store, self.detector = store, detector
        self.places = [place[key] for key in keys]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i):  # type: ignore[override]
        sample = self.store[self.places[i]]
        if self.detector is not None:
            map = predict(self.detector, from_uint8(sample.image[None]), 1)[0, 0]
            guess = (map * 255).round().clamp(0, 255).numpy().astype(np.uint8)
        else:
            guess = None if sample.mask is None else label_of(sample)
        return Case(sample.key, sample.image, guess, sample.record.prompt)


def label_of(sample: Sample) -> Mask:
    """The mask at the size of its image, as a detector would learn it."""
    return (255 * to_tensors([sample])[1][0, 0]).round().byte().numpy()


def read_keys(path: Path, known: Sequence[str]) -> list[str]:
    """Keys of a text file, each once, in its order; `UserError` for one that is not known."""
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path} as text; write the key of one image a line."
        ) from error
    keys, there = list(dict.fromkeys(lines)), set(known)
    stranger = next((key for key in keys if key not in there), None)
    if stranger is not None:
        close = get_close_matches(stranger, known, n=1)
        cure = f"did you mean {close[0]!r}?" if close else "name keys of the store."
        raise UserError(f"{path} names {stranger!r}, which is not in the store; {cure}")
    if not keys:
        raise UserError(f"{path} names no image; write the key of one image a line.")
    return keys


def begin(out: Path, order: dict) -> bool:
    """Whether this very order was carried out; `UserError` where the folder holds another."""
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    if (out / ORDER).is_file():
        held = read_json(out / ORDER)
        if held not in ({**order, "complete": False}, {**order, "complete": True}):
            raise UserError(f"{out} holds other images or guesses; choose another --out.")
        return held["complete"]
    if any(one.name[0] != "." for one in out.iterdir()):
        raise UserError(f"--out {out} holds other files; choose an empty folder.")
    write_order(out, {**order, "complete": False})
    return False


def write_order(out: Path, order: dict) -> None:
    write_atomic(out / ORDER, json.dumps(order, indent=1).encode())


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m data_balancing.annotate_out")
