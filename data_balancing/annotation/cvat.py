"""CVAT: a zip of images with mask guesses out, "CVAT for images 1.1" of one or several people back.

    to_annotate.zip      images/KEY.png to make a task of, annotations.xml to upload to it

A mask of CVAT knows yes and no only: the guess is cut at half. The export of a task names one
person (its assignee, else the file's own name), so several people are several files in a folder.
Masks, polygons and boxes are read.

Legend: h w pixels.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from core import storage
from core.errors import UserError
from core.image_files import encode_png
from data_balancing.annotation.cases import (
    HALF,
    LABEL,
    SENT,
    Annotation,
    Case,
    Mask,
    Size,
    check_size,
    exports,
    merged,
    read_capped,
    size_of,
)
from data_balancing.annotation.outlines import Point, box_points, polygon_mask
from data_balancing.annotation.runs import from_runs, to_runs

XML = "annotations.xml"
MAX_XML_BYTES = 256 << 20
"""Once parsed it takes several times as much memory."""
IGNORED = ("tag",)
"""What CVAT writes about an image that is no shape."""
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The date of all members, so that the same cases give the same bytes."""


def write(cases: Sequence[Case], folder: Path) -> Path:
    """The zip's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path, images = folder / f"{SENT}.zip", Element("annotations")
    ElementTree.SubElement(images, "version").text = "1.1"
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            for i, case in enumerate(cases):
                _add(archive, f"images/{case.key}.png", encode_png(case.image))
                images.append(_described(i, case))
            _add(archive, XML, ElementTree.tostring(images, encoding="utf-8"))
        stream.flush()
        storage.primitives.fsync(stream.fileno())
    storage.primitives.rename(temporary, path)
    storage.sync_folder(folder)
    return path


def read(path: Path, sizes: Mapping[str, Size]) -> Iterator[Annotation]:
    """The annotations of every image of the exports (.xml, or .zip with one inside)."""
    for file in exports(path, (".xml", ".zip")):
        root = _parsed(_xml_of(file), file)
        who = next((name.text for name in root.iterfind("meta//assignee/username")), None)
        when = root.findtext("meta/dumped") or ""
        tool = f"cvat {root.findtext('version') or ''}".strip()
        if root.find("track") is not None:
            raise UserError(f"{file} is of a video; export it as 'CVAT for images 1.1'.")
        for image in root.iter("image"):
            key = Path(image.get("name", "")).stem
            where = f"{file}: {key}"
            size = size_of(sizes, key, str(file))
            check_size((_whole(image, "height", where), _whole(image, "width", where)), size, where)
            mask = merged(_shapes(image, size, where), size)
            yield Annotation(key, who or file.stem, mask, when, tool)


def encode_points(mask: Mask) -> list[int]:
    """What CVAT's API calls the points of a mask: runs in its box, then the box, ends included."""
    left, top, right, bottom = _box(mask)
    inside = mask[top : bottom + 1, left : right + 1] >= HALF
    return [*to_runs(inside.ravel()), left, top, right, bottom]


def decode_points(points: Sequence[float], size: Size, where: str) -> Mask:
    """The mask, 0 and 255; `UserError` where box or runs do not fit an image of that size."""
    if not all(float(point).is_integer() for point in points) or len(points) < 5:
        raise UserError(f"{where}: a mask is no list of whole numbers; export it again.")
    *runs, left, top, right, bottom = map(int, points)
    if not (0 <= left <= right < size[1] and 0 <= top <= bottom < size[0]):
        raise UserError(f"{where}: a mask reaches out of its image; export it again.")
    height, width = bottom + 1 - top, right + 1 - left
    mask = np.zeros(size, np.uint8)
    inside = from_runs(runs, height * width, where).reshape(height, width)
    mask[top : bottom + 1, left : right + 1][inside] = 255
    return mask


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """First and last marked column and row; the first pixel where nothing is marked."""
    rows, columns = np.nonzero(mask >= HALF)
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def _described(i: int, case: Case) -> Element:
    """The image's element, with the guess in it where that marks anything."""
    height, width = case.image.shape[:2]
    sides = {"width": str(width), "height": str(height)}
    image = Element("image", {"id": str(i), "name": f"{case.key}.png", **sides})
    if case.guess is None or case.guess.max(initial=0) < HALF:
        return image
    *runs, left, top, right, bottom = encode_points(case.guess)
    box = {"left": left, "top": top, "width": right + 1 - left, "height": bottom + 1 - top}
    said = {"label": LABEL, "source": "auto", "occluded": "0", "rle": ", ".join(map(str, runs))}
    said |= {name: str(value) for name, value in box.items()}
    ElementTree.SubElement(image, "mask", {**said, "z_order": "0"})
    return image


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, LONG_AGO), content)


def _xml_of(file: Path) -> bytes:
    if file.suffix.lower() != ".zip":
        return read_capped(file, MAX_XML_BYTES)
    try:  # only this member is read, and nothing is ever unpacked to a path that a zip names
        with zipfile.ZipFile(file) as archive, archive.open(XML) as stream:
            content = stream.read(MAX_XML_BYTES + 1)
    except KeyError as error:
        raise UserError(f"{file} has no {XML}; export it as 'CVAT for images 1.1'.") from error
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{file} is no readable zip ({error}); export it again.") from error
    if len(content) > MAX_XML_BYTES:
        raise UserError(f"{file}: {XML} is larger than {MAX_XML_BYTES} bytes; export less at once.")
    return content


def _parsed(content: bytes, file: Path) -> Element:
    """The root element; no document type, so no entity that grows or reaches for a file."""
    try:
        text = content.decode()  # UTF-8 whatever it declares, so that the search below sees all
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise UserError(
                f"{file} declares a document type, as CVAT never does; export it again."
            )
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{file} is no valid XML ({error}); export it again.") from error
    if root.tag != "annotations":
        raise UserError(f"{file} is not of CVAT; export it as 'CVAT for images 1.1'.")
    return root


def _shapes(image: Element, size: Size, where: str) -> Iterator[Mask]:
    for shape in image:
        if shape.tag == "mask":
            yield _mask(shape, size, where)
        elif shape.tag == "polygon":
            yield polygon_mask(_points(shape, where), size, where)
        elif shape.tag == "box":
            ends = [_number(shape, name, where) for name in ("xtl", "ytl", "xbr", "ybr")]
            turned = _number(shape, "rotation", where, "0")
            corners = box_points((ends[0], ends[1]), (ends[2], ends[3]), turned)
            yield polygon_mask(corners, size, where)
        elif shape.tag not in IGNORED:
            raise UserError(f"{where} has a {shape.tag}; draw masks, polygons or boxes.")


def _mask(shape: Element, size: Size, where: str) -> Mask:
    try:
        runs = [int(run) for run in shape.get("rle", "").split(",")]
    except ValueError as error:
        raise UserError(f"{where}: a mask has no run lengths; export it again.") from error
    left, top = _whole(shape, "left", where), _whole(shape, "top", where)
    right = left + _whole(shape, "width", where) - 1
    bottom = top + _whole(shape, "height", where) - 1
    return decode_points([*runs, left, top, right, bottom], size, where)


def _points(shape: Element, where: str) -> list[Point]:
    try:
        pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
        return [(float(x), float(y)) for x, y in pairs]
    except ValueError as error:
        raise UserError(f"{where}: a polygon has no points; export it again.") from error


def _number(element: Element, name: str, where: str, default: str = "") -> float:
    try:
        return float(element.get(name, default))
    except ValueError as error:
        raise UserError(
            f"{where}: {element.tag} has no number {name!r}; export it again."
        ) from error


def _whole(element: Element, name: str, where: str) -> int:
    number = _number(element, name, where)
    if not number.is_integer():
        raise UserError(f"{where}: {name!r} of {element.tag} is not whole; export it again.")
    return int(number)
