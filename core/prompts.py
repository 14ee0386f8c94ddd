"""A file of prompts in, the prompts as a list out: one a line, or the column `prompt`."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

from core.errors import UserError
from core.parquet import SUFFIX, ParquetRows

MAX_BYTES = 64 * 1024 * 1024


def read_prompts(path: Path) -> list[str]:
    """Prompts in the file's order, empty ones and the `#` comments of a .txt passed over.

    Raises `UserError` for a missing file, another format, a missing column, or no prompt at all.
    """
    path = Path(path)
    found = ParquetRows(path).texts(["prompt"]) if path.suffix == SUFFIX else _text(path)
    prompts = [prompt.strip() for prompt in found if prompt and prompt.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one a line.")
    return prompts


def _text(path: Path) -> list[str]:
    if path.suffix not in FORMATS:
        known = ", ".join((*FORMATS, SUFFIX))
        raise UserError(f"{path} is no prompt list: write the prompts to a {known} file.")
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES} bytes: split the prompts.")
        return FORMATS[path.suffix](text.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read the prompts {path} ({error.strerror}): check it.") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} has no column 'prompt': name the text column so.") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} does not parse ({' '.join(str(error).split())}).") from error


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def _json_lines(text: str) -> list[str]:
    """`{"prompt": ...}` a line; `splitlines` would also cut at characters inside a prompt."""
    return [str(json.loads(line)["prompt"]) for line in text.split("\n") if line.strip()]


def _csv_rows(text: str) -> list[str]:
    return [row["prompt"] for row in csv.DictReader(io.StringIO(text))]


FORMATS: dict[str, Callable[[str], list[str]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".csv": _csv_rows,
}
