"""A file of prompts with their categories in, checked jobs out; and which texts are the same.

Legend: n runs of characters.
"""

import json
import math
import re
import unicodedata
from array import array
from pathlib import Path

import numpy as np
from jaxtyping import UInt32
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


Numbers = UInt32[np.ndarray, " n"]

NGRAM = 4
NEAR = 0.7
"""Jaccard similarity from which two prompts are near-duplicates: of the shipped grammar's, those
that differ in one word or two."""


SHARED = 32
"""Runs that two near-duplicates must share among the rarest ones of either, before they are
compared whole: of 8, 16, 32 and 64 the fastest for the shipped grammar."""


class Distinct:
    """Texts of which no two are the same or nearly so.

    Whoever is near to a text lacks few of its runs, so must share most of its rarest ones, which
    few texts have: only those are looked at (Chaudhuri et al., "A primitive operator for similarity
    joins in data cleaning", ICDE 2006).
    """

    def __init__(self, near: float = NEAR):
        self.near = near
        self._texts: set[str] = set()
        self._numbers: dict[str, int] = {}
        """Of the runs."""
        self._runs: list[Numbers] = []
        """Those of each text."""
        self._holders: list[array] = []
        """The texts that hold each run, by their places in that list."""

    def add(self, text: str) -> bool:
        """Take a text in; False, and nothing done, where it or one like it is there."""
        plain = normalised(text)
        found = [self._numbers.setdefault(run, len(self._numbers)) for run in ngrams(plain)]
        self._holders += [array("I") for _ in range(len(self._holders), len(self._numbers))]
        runs = np.array(found, np.uint32)
        if plain in self._texts or self._holds_near(runs):
            return False
        self._texts.add(plain)
        for run in found:
            self._holders[run].append(len(self._runs))
        self._runs.append(runs)
        return True

    def _holds_near(self, runs: Numbers) -> bool:
        """Whether some text's Jaccard similarity reaches `near`."""
        if self.near > 1:
            return False
        lacking = len(runs) - math.floor(self.near * len(runs))
        rarest = sorted((self._holders[run] for run in runs), key=len)[: lacking + SHARED]
        shared = np.bincount(np.concatenate([np.frombuffer(one, np.uint32) for one in rarest]))
        given = np.zeros(len(self._numbers), bool)
        given[runs] = True
        for i in np.flatnonzero(shared >= max(1, len(rarest) - lacking)):
            common = np.count_nonzero(given[self._runs[i]])
            if common / (len(runs) + len(self._runs[i]) - common) >= self.near:
                return True
        return False


def normalised(text: str) -> str:
    """Lower case, without punctuation or accents, single spaces."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", plain))


def ngrams(text: str, n: int = NGRAM) -> frozenset[str]:
    """The runs of n characters, the ends padded by a blank."""
    text = f" {text} "
    return frozenset(text[i : i + n] for i in range(max(1, len(text) - n + 1)))
