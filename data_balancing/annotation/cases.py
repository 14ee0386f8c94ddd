"""What goes out to annotators and what comes back, and what the formats of all tools share.

Legend: h w pixels.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ValidationError

from core.errors import UserError
from core.image_files import encode_png
from core.storage import write_atomic

Image = UInt8[np.ndarray, "h w 3"]
Mask = UInt8[np.ndarray, "h w"]
Size = tuple[int, int]
"""Height and width in pixels."""

LABEL = "artifact"
HALF = 128
"""From this level on a pixel is marked, where a format knows only yes and no."""
ORDER = "annotate.json"
"""Where a folder of cases says which ones it holds."""
SENT = "to_annotate"
"""Stem of the file that a tool imports: a folder of exports may lie in the same place. Several are
numbered."""
INTERFACE = "label_config.xml"
"""What Label Studio is told of the labelling interface: it lies beside, and is no export."""
MAX_EXPORT_BYTES = 1 << 30
B = TypeVar("B", bound=BaseModel)


class Case(NamedTuple):
    """An image to be annotated."""

    key: str
    image: Image
    guess: Mask | None
    """The mask that the annotator begins with, of the image's size."""
    prompt: str


class Annotation(NamedTuple):
    """What one person marked in one image."""

    key: str
    annotator: str
    mask: Mask
    when: str
    """As the tool writes it: ISO 8601."""
    tool: str
    """Name, and version where the export says it."""
    seconds: float | None = None
    """How long it took, where the tool measures that."""


def write_images(cases: Iterable[Case], folder: Path) -> None:
    """`folder/images/KEY.png`, each whole or not at all."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for case in cases:
        write_atomic(folder / "images" / f"{case.key}.png", encode_png(case.image))


def exports(path: Path, suffixes: Collection[str]) -> list[Path]:
    """The file itself, or those of a folder that end so and are not what was sent out.

    Raises `UserError` where there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no {path}; name the file that the annotation tool exported.")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
    ours = (ORDER, INTERFACE)
    sent = re.compile(rf"{SENT}(-\d+)?")
    found = [file for file in found if not sent.fullmatch(file.stem) and file.name not in ours]
    found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(f"{path} holds no export ({', '.join(suffixes)}); put the tool's there.")
    return found


def read_capped(path: Path, cap: int = MAX_EXPORT_BYTES) -> bytes:
    """The bytes of a file of strangers; `UserError` for one too large."""
    try:
        with path.open("rb") as stream:
            content = stream.read(cap + 1)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path.") from error
    if len(content) > cap:
        raise UserError(f"{path} is larger than {cap} bytes; export it in several files.")
    return content


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_capped(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON; export it again.") from error


def checked(model: type[B], value: Any, where: str) -> B:
    """A JSON value as what it should be; `UserError` with the place of the first fault."""
    try:
        return model.model_validate(value)
    except (ValidationError, RecursionError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": ""}
        place = ".".join(map(str, fault["loc"])) or "the whole"
        raise UserError(
            f"{where} is not as the tool writes it ({place}: {fault['msg']}); export it again."
        ) from error


def size_of(sizes: Mapping[str, Size], key: str, where: str) -> Size:
    """The size of the image of that key; `UserError` for a stranger."""
    try:
        return sizes[key]
    except KeyError as error:
        raise UserError(
            f"{where} annotates {key!r}, which is not in the store; name the store that the "
            "images were exported from."
        ) from error


def check_size(found: Size, size: Size, where: str) -> None:
    """Refuse an annotation that was made on another size, before anything is allocated for it."""
    if found != size:
        raise UserError(
            f"{where} is of {found[1]}x{found[0]} pixels but its image has {size[1]}x{size[0]}; "
            "annotate the images as they were exported."
        )


def merged(masks: Iterable[Mask], size: Size) -> Mask:
    """The highest level of each pixel; zero where there is no mask at all."""
    whole = np.zeros(size, np.uint8)
    for mask in masks:
        np.maximum(whole, mask, out=whole)
    return whole
