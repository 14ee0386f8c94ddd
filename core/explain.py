"""A fault of settings in, one sentence with its cure out: of a mapping, or of a command line."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tyro
from pydantic import BaseModel, ValidationError

COMMAND_LINE = "the command line"
CALL = "the call"
"""From Python, where no option is of help."""
NO_KIND = re.compile(
    r"Error parsing (?P<option>\S+): no type matching (?P<kinds>.+) could be instantiated "
    r"from \[(?P<given>.*?)\]\. Got errors"
)
"""tyro's complaint of words that are none of several kinds."""
MISSING = re.compile(r"^\W {4,5}(\S.*?) *\W$", re.MULTILINE)
"""In tyro's box, what it misses; the meaning stands below, further in."""


def explain(error: ValidationError, cls: type[BaseModel], where: str) -> str:
    """The first fault of a validation error as one sentence with its cure."""
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return unknown_name(name, _names(cls), where)
    if fault["type"] == "missing" and where == CALL:
        return f"{name!r} is missing in {where}; give it."
    if fault["type"] == "missing":
        option = f"--{_dashed(name)}" if name not in positionals(cls) else "a plain argument"
        return f"{name!r} is missing in {where}; give it there or as {option}."
    if fault["type"] == "too_short":
        bounds = fault.get("ctx", {})
        least, given = bounds.get("min_length"), bounds.get("actual_length")
        option = f"--{_dashed(name)}" if name not in positionals(cls) else "plain arguments"
        return (
            f"{name!r} in {where} has {given}, and needs {least} at least; give them as {option}."
        )
    message = fault["msg"].removeprefix("Value error, ")
    if not name:
        return f"{where}: {one_line(message)}"
    given = _without_paths(fault["input"])
    name = "--json" if (name, where) == ("json_file", COMMAND_LINE) else name
    return f"{name!r} in {where} is {given!r}: {one_line(message).rstrip('.')}."


def _without_paths(given: Any) -> Any:
    """A value as it was typed: paths, also those of a list, as texts."""
    if isinstance(given, tuple | list):
        return [_without_paths(one) for one in given]
    return str(given) if isinstance(given, Path) else given


def unknown_name(name: str, known: Iterable[str], where: str) -> str:
    """One sentence for a name that does not exist, with the closest one that does."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # a nested name given without its prefix, or the other way round
        close = [full for full in known if full.split(".")[-1] == name.split(".")[-1]][:1]
    cure = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}."
    return f"unknown name {name!r} in {where}; {cure}"


def complaint(cls: type[BaseModel], words: list[str], stop: SystemExit, box: str) -> str:
    """What tyro stopped at, by the box it wrote and the cause behind it, as one sentence."""
    unknown = unknown_word(cls, words)
    if unknown:
        return unknown
    cause = stop.__context__
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__context__
    if cause is not None:
        return explain(cause, cls, COMMAND_LINE)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)  # colours, where stdout is a terminal
    rows = [row.strip(" │╰─╯") for row in plain.splitlines()[1:]]  # the first is the box's title
    absent = MISSING.findall(plain.split("For full helptext")[0]) if "Missing from" in plain else []
    if absent:
        return f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing; see --help."
    text = one_line(" ".join(row for row in rows if not set(row) <= {"-"}))
    text = text.split("Argument helptext:")[0].split("For full helptext")[0].strip()
    choice = NO_KIND.match(text)
    if choice:  # tyro goes on with Python's own names for the kinds
        kinds = choice["kinds"].replace("{None}|", "").replace("{[", "").replace("]}", "")
        text = f"{choice['option']} takes {kinds.replace('|', ' or ')}, not {choice['given']}"
    return f"{text.rstrip('.:')}; see --help."


def unknown_word(cls: type[BaseModel], words: list[str]) -> str | None:
    """A sentence for the first `--option` that the settings do not have."""
    renamed = {getattr(one, "name", None) for f in cls.model_fields.values() for one in f.metadata}
    known = {_dashed(name) for name in _names(cls)} | (renamed - {None}) | {"config", "help"}
    for word in words:
        name = _dashed(word.split("=")[0].lstrip("-"))
        positive = ".".join([*name.split(".")[:-1], name.split(".")[-1].removeprefix("no-")])
        if word.startswith("--") and name not in known and positive not in known:
            return unknown_name(f"--{name}", [f"--{k}" for k in known], COMMAND_LINE)
    return None


def _names(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings, nested ones included."""
    names = []
    for name, field in cls.model_fields.items():
        names.append(prefix + name)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                names += _names(inner, f"{prefix}{name}.")
    return names


def positionals(cls: type[BaseModel]) -> list[str]:
    """Settings given by their place on the command line (`tyro.conf.Positional`), in order."""
    fields = cls.model_fields.items()
    return [name for name, field in fields if tyro.conf.Positional in field.metadata]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def one_line(text: str) -> str:
    return " ".join(text.split())
