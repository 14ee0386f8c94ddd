"""An image in, its categories as a multimodal model sees them out; asked once, remembered.

Legend: h w pixels.
"""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pydantic import ValidationError

from core.storage import write_atomic
from data_balancing.asking import Message, Model, Unanswered, ask
from data_balancing.looks import pixels as pixel_digest
from data_balancing.taxonomy import Seen, Taxonomy, answer_type

PROMPT_VERSION = 1
"""Raised with every change of the question or of the picture that goes with it."""
SIDE = 768
"""Longer side, in pixels, of the picture that is sent: hands stay visible, and it costs little."""
QUALITY = 90
"""Of the JPEG that is sent; at 768 pixels it is a tenth of the PNG."""
QUESTION = """You name what an image shows. The categories, with their meaning:

{categories}

Name every category that is plainly visible, however small, and none that is merely likely. An \
image may show several or none. Judge what is meant to be shown: a badly drawn hand is a hand. \
Answer with a JSON object {{"categories": [...]}} of these names."""


class Tagged(NamedTuple):
    """One image's answer, or why there is none."""

    pixels: str
    """sha256 of the image once decoded."""
    categories: tuple[str, ...] = ()
    reason: str = ""
    """Empty unless the image was set aside."""


class Tagger:
    """A model that is asked about images; what it said is kept in `cache`, by content."""

    def __init__(self, model: Model, taxonomy: Taxonomy, cache: Path):
        self.model, self.taxonomy, self.cache = model, taxonomy, cache
        self._answer = answer_type(taxonomy)
        self._question = question(taxonomy)

    def tag(self, image: np.ndarray) -> Tagged:
        """Categories of an image (h, w, 3) uint8, in the taxonomy's order."""
        pixels = pixel_digest(image)
        place = self._place(pixels)
        known = _read(place, self._answer)
        if known is not None:
            return Tagged(pixels, known)
        try:
            found = ask(self.model, messages(self._question, image), self._answer)
        except Unanswered as error:
            return Tagged(pixels, reason=str(error))
        said = tuple(leaf for leaf in self.taxonomy.leaves if leaf in found.categories)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, (json.dumps({"categories": said}) + "\n").encode())
        return Tagged(pixels, said)

    def _place(self, pixels: str) -> Path:
        """Where the answer is kept: by image, model, taxonomy and question."""
        asked = json.dumps([pixels, self.model.name, self.taxonomy.digest, PROMPT_VERSION])
        name = hashlib.sha256(asked.encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.json"


def question(taxonomy: Taxonomy) -> str:
    lines = [f"- {leaf}: {taxonomy.about(leaf)}" for leaf in taxonomy.leaves]
    return QUESTION.format(categories="\n".join(lines))


def messages(text: str, image: np.ndarray) -> list[Message]:
    """The question as the system's word, the picture as the user's."""
    picture: Any = {"type": "image_url", "image_url": {"url": picture_url(image)}}
    asked = {"type": "text", "text": "Which categories are plainly visible here?"}
    return [{"role": "system", "content": text}, {"role": "user", "content": [picture, asked]}]


def picture_url(image: np.ndarray) -> str:
    """An image (h, w, 3) uint8 inside an address, its longer side at most `SIDE`."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.save(buffer, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Cohen's kappa of two taggers' yes and no (Cohen 1960); None where both always say the same.

    (p_o - p_e) / (1 - p_e), with p_o the share they agree on, p_e what chance gives them.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if not len(a):
        return None
    p_o = float((a == b).mean())
    p_e = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return None if p_e == 1 else (p_o - p_e) / (1 - p_e)


def agreement(
    names: Sequence[str], first: Sequence[Sequence[str]], second: Sequence[Sequence[str]]
) -> dict[str, dict[str, float | int | None]]:
    """By category: kappa, the share of images on which both agree, and how often each named it."""
    found = {}
    for name in names:
        a, b = [name in said for said in first], [name in said for said in second]
        same = sum(x == y for x, y in zip(a, b, strict=True))
        share = same / len(a) if a else None
        found[name] = {"kappa": kappa(a, b), "share": share, "first": sum(a), "second": sum(b)}
    return found


def _read(place: Path, answer: type[Seen]) -> tuple[str, ...] | None:
    """A kept answer; one that a crash or a hand has spoilt is asked for again."""
    try:
        return answer.model_validate_json(place.read_bytes()).categories
    except (OSError, ValidationError):
        return None
