"""A published data set in, as its authors laid it out; its images with masks and origin out.

In: a folder (or annotation file) of a stranger, and where it comes without images, their folder.
Out: one `data_balancing.entries.Entry` for each image, in a fixed order: reading it gives pixels, a
mask 0..255 and what is known of the image, or a `UserError` that says why it is set aside. Nothing
that a set says can kill the reading, lead out of its folder or run code. A new format is one file
and one line below.
"""

from typing import NamedTuple

from data_balancing.entries import Reader
from data_balancing.formats import (
    coco,
    hadm,
    imdl,
    pal4vst,
    photographs,
    plain,
    richhf,
    synthscars,
    webdataset,
    xaigd,
)


class Format(NamedTuple):
    """How one set is read."""

    read: Reader
    what: str
    """What the folder must look like, in a line."""
    licence: str
    """Of the published set; empty where none is stated."""
    needs_images: bool
    """The set comes without images: their folder must be named."""


FORMATS: dict[str, Format] = {
    "pal4vst": Format(pal4vst.read, pal4vst.WHAT, "", False),
    "richhf": Format(richhf.read, richhf.WHAT, "", True),
    "synthscars": Format(synthscars.read, synthscars.WHAT, synthscars.LICENCE, False),
    "xaigd": Format(xaigd.read, xaigd.WHAT, xaigd.LICENCE, False),
    "hadm": Format(hadm.read, hadm.WHAT, "", False),
    "imdl": Format(imdl.read, imdl.WHAT, "", False),
    "coco": Format(coco.read, coco.WHAT, "", False),
    "plain": Format(plain.read, plain.WHAT, "", False),
    "webdataset": Format(webdataset.read, webdataset.WHAT, "", False),
    "photographs": Format(photographs.read, photographs.WHAT, "", False),
}
