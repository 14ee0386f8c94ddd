"""Images go out to annotation tools, each with a guess to correct, and human masks come back.

In: cases (image, guess, prompt) out of a store; later the file or folder that the tool exported.
Out: what the tool imports; later one annotation (annotator, mask, time, tool) for each person and
image. A file holds one tool's format, both ways. All labels of an image are merged by maximum, and
an image that somebody was done with and marked nothing in has the mask zero: it was found sound.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_balancing.annotation import coco, cvat, label_studio, png
from data_balancing.annotation.cases import Annotation, Case, Size


class Tool(NamedTuple):
    """The two directions of one format."""

    write: Callable[[Sequence[Case], Path], Path]
    """(cases, folder) to the path that the tool imports, or the pattern of several; the same cases
    give the same bytes."""
    read: Callable[[Path, Mapping[str, Size]], Iterator[Annotation]]
    """(the export, or a folder of several; the sizes of the images by key) to the annotations."""


TOOLS = {
    "label_studio": Tool(label_studio.write, label_studio.read),
    "cvat": Tool(cvat.write, cvat.read),
    "coco": Tool(coco.write, coco.read),
    "png": Tool(png.write, png.read),
}
