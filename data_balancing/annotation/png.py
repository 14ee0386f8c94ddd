"""Plain pictures: images and guesses out, gray masks of one or several people back.

    images/KEY.png
    prompts.jsonl                 {"image": "images/KEY.png", "prompt": ...} a line
    guesses/KEY.png               0..255, to begin with; never read back
    masks/KEY.png                 what a person or a command made of it
    annotators/NAME/KEY.png       the same of several people

The `masks/`, empty at first, are read as those of one annotator, `painter`. Without guesses it is
the folder that an annotator's command is given (`data_balancing.annotator_command`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.heatmap import read_map
from core.image_files import SUFFIXES, encode_png, list_images
from core.storage import write_atomic
from data_balancing.annotation.cases import (
    Annotation,
    Case,
    Mask,
    Size,
    check_size,
    size_of,
    write_images,
)

PAINTER = "painter"


def write(cases: Sequence[Case], folder: Path) -> Path:
    """The folder itself."""
    for name in ("guesses", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for case in cases:
        write_images([case], folder)
        if case.guess is not None:
            write_atomic(folder / "guesses" / f"{case.key}.png", encode_png(case.guess))
        lines.append(json.dumps({"image": f"images/{case.key}.png", "prompt": case.prompt}))
    write_atomic(folder / "prompts.jsonl", "".join(line + "\n" for line in lines).encode())
    return folder


def read(path: Path, sizes: Mapping[str, Size]) -> Iterator[Annotation]:
    """The masks of every annotator; the time is that of the file."""
    for name, folder in _annotators(Path(path)):
        for file in list_images(folder):
            size = size_of(sizes, file.stem, str(file))
            mask = _levels(file)
            check_size(mask.shape, size, str(file))
            when = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
            yield Annotation(file.stem, name, mask, when, "png")


def _annotators(path: Path) -> Iterator[tuple[str, Path]]:
    found = [(one.name, one) for one in sorted(path.glob("annotators/*")) if one.is_dir()]
    if any(one.suffix.lower() in SUFFIXES for one in path.glob("masks/*")):
        found.append((PAINTER, path / "masks"))
    yield from found
    if not found:
        raise UserError(
            f"{path} holds no finished annotation; name a folder with masks/KEY.png or "
            "annotators/NAME/KEY.png (guesses/ is only what to begin with)."
        )


def _levels(file: Path) -> Mask:
    return (read_map(file)[0].numpy() * 255).round().astype(np.uint8)
