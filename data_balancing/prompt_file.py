"""A file of prompts with their categories in, checked jobs out; and which texts are the same."""

import json
import re
import unicodedata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import UserError

MAX_BYTES = 64 * 1024 * 1024
MAX_PROMPT = 1000
"""Characters; the longest text encoder here reads 512 tokens."""


class PromptLine(BaseModel):
    """One line of a `.jsonl` file of prompts; what else it says is passed over."""

    model_config = ConfigDict(frozen=True)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, pattern=r"\S")
    category: str = ""


def read_prompt_lines(path: Path) -> list[PromptLine]:
    """The prompts of a `.jsonl` file, or of a `.txt` one a line, without categories.

    Raises `UserError` naming the line, and for a file without any prompt.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".txt"):
        raise UserError(f"{path} is no list of prompts; name a .jsonl or .txt file.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES} bytes; split it.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the prompts {path} ({error.strerror}); check it.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text; save it as such.") from error
    rows = [(i, row) for i, row in enumerate(text.split("\n"), 1) if row.strip()]
    if path.suffix == ".txt":
        rows = [(i, row) for i, row in rows if not row.lstrip().startswith("#")]
    lines = [_line(path, i, row, path.suffix == ".jsonl") for i, row in rows]
    if not lines:
        raise UserError(f"{path} holds no prompt; write one a line.")
    return lines


def _line(path: Path, number: int, row: str, as_json: bool) -> PromptLine:
    try:
        given = json.loads(row) if as_json else {"prompt": row.strip()}
        return PromptLine.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "line"
        raise UserError(f"line {number} of {path}: {where}: {fault['msg']}; mend it.") from error
    except ValueError as error:
        raise UserError(f"line {number} of {path} is no JSON; mend it.") from error


NGRAM = 4
NEAR = 0.7
"""Jaccard similarity from which two prompts are near-duplicates: of the shipped grammar's, those
that differ in one word or two."""


class Distinct:
    """Texts of which no two are the same or nearly so."""

    def __init__(self, near: float = NEAR):
        self.near = near
        self._texts: set[str] = set()
        self._grams: list[int] = []
        self._bits: dict[str, int] = {}
        """Which bit of those integers stands for a run: ten times as fast as sets."""

    def add(self, text: str) -> bool:
        """Take a text in; False, and nothing done, where it or one like it is there."""
        plain = normalised(text)
        grams = sum(1 << self._bits.setdefault(g, len(self._bits)) for g in ngrams(plain))
        if plain in self._texts or any(jaccard(grams, had) >= self.near for had in self._grams):
            return False
        self._texts.add(plain)
        self._grams.append(grams)
        return True


def normalised(text: str) -> str:
    """Lower case, without punctuation or accents, single spaces."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", plain))


def ngrams(text: str, n: int = NGRAM) -> frozenset[str]:
    """The runs of n characters, the ends padded by a blank."""
    text = f" {text} "
    return frozenset(text[i : i + n] for i in range(max(1, len(text) - n + 1)))


def jaccard(a: int, b: int) -> float:
    """Common share of two sets of bits."""
    return (a & b).bit_count() / max((a | b).bit_count(), 1)
