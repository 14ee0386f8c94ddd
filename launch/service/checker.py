"""Settings, archives and schemas judged in a child process: JSON lines in, JSON lines out.

The server itself never imports a stage, so that it stays small and no stage's fault is its own.
The child imports what a question names, answers further ones at once, and ends when it has not
been asked for a while, or when the server ends.
"""

import importlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from core.errors import UserError
from core.explain import explain
from launch import archives
from launch.launchers.contract import environment

IDLE = 60.0
"""Seconds without a question after which the child ends."""
PATIENCE = 180.0
"""Seconds that an answer may take; the first one waits for torch."""


Questions = Mapping[str, Callable[..., Any]]
"""What a child answers, by name."""


class Unanswered(Exception):
    """The child broke or took too long: no fault of who asked."""


class Closed(Exception):
    """The service ends, and answers no more."""


class Checker:
    """Asks the child, which is started when there is something to ask. Safe for many threads."""

    def __init__(
        self,
        offline: bool = True,
        idle: float = IDLE,
        patience: float = PATIENCE,
        module: str = __name__,
    ):
        """`module` is what the child runs: one that calls `serve_questions`."""
        self._module = module
        self._offline, self._idle, self._patience = offline, idle, patience
        self._child: subprocess.Popen[bytes] | None = None
        self._one = threading.Lock()
        self._closed = False
        self._starting = threading.RLock()  # a signal's handler may close in the midst of a call

    def ask(self, what: str, **values: Any) -> Any:
        """An answer; raises `UserError` with the child's sentence, `Unanswered` or `Closed`."""
        question = json.dumps({"do": what, **values}).encode() + b"\n"
        with self._one:
            answer = self._exchange(question)
        return told(answer)

    def close(self) -> None:
        """At once: whoever waits for an answer, or asks from now on, hears `Closed`."""
        with self._starting:
            self._closed, child = True, self._child
        if child is not None:
            child.kill()
        with self._one:
            self._end()

    def _exchange(self, question: bytes) -> dict[str, Any]:
        for _ in range(2):  # an idle child may have left at this very moment
            try:
                child = self._started()
            except OSError as error:  # this machine cannot start one now
                raise Unanswered(str(error)) from error
            assert child.stdin is not None and child.stdout is not None
            try:
                child.stdin.write(question)
                child.stdin.flush()
                line = _line(child.stdout.fileno(), self._patience)
            except BrokenPipeError:
                line = b""
            if line is None:
                self._end()
                raise Unanswered(f"no answer within {self._patience:.0f} s")
            if line:
                return json.loads(line)
            self._end()
        raise Unanswered("the process that was asked has died")

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._starting:
            if self._closed:
                raise Closed
            if self._child is not None and self._child.poll() is not None:
                self._end()
            if self._child is None:
                words = [sys.executable, "-P", "-m", self._module, str(self._idle)]
                more = {"HF_HUB_OFFLINE": "1"} if self._offline else {}
                more |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
                self._child = subprocess.Popen(
                    words,
                    env={**environment(), **more},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # a Ctrl-C is the server's to hear
                )
            return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
        self._child = None


class Fault(UserError):
    """What is wrong with the settings, and with which."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class Strange(UserError):
    """What was asked broke something that nobody had foreseen; the child's log says what."""


def told(answer: dict[str, Any]) -> Any:
    """What the child found, or its fault raised."""
    if "broken" in answer:
        raise Unanswered(answer["broken"])
    if "strange" in answer:
        raise Strange(answer["strange"])
    if "error" in answer:
        raise Fault(answer["error"], answer.get("param"))
    return answer["answer"]


def _line(source: int, patience: float) -> bytes | None:
    """One line; empty where the other side is gone, None where it takes too long."""
    line, until = bytearray(), time.monotonic() + patience
    ready = select.poll()  # `select` knows no file beyond the thousandth, as with many connections
    ready.register(source, select.POLLIN)
    while not line.endswith(b"\n"):
        left = until - time.monotonic()
        if left <= 0 or not ready.poll(1000 * left):
            return None
        part = os.read(source, 1 << 16)
        if not part:
            return b""
        line += part
    return bytes(line)


# In the child


def check(config: str, settings: dict[str, Any], inputs: list[str], words: list[str]) -> Any:
    """The complete settings; a `Fault` for what cannot be, or may not be set over HTTP."""
    cls = config_class(config)
    allowed = {*inputs, *words, "out"}
    for name in given(settings):
        if name in free_settings(cls) and name not in allowed:
            raise Fault(f"{name!r} cannot be set over HTTP; leave it out.", name)
    several = [n for n, field in cls.model_fields.items() if _is_list(field.annotation)]
    settings |= {n: [settings[n]] for n in several if isinstance(settings.get(n), str)}
    try:
        return cls.model_validate(settings).model_dump(mode="json")
    except ValidationError as error:
        fault = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        param = ".".join(map(str, fault["loc"])) or None
        raise Fault(explain(error, cls, "the settings"), param) from error


def schema(config: str, allowed: list[str]) -> Any:
    """Without what nobody may set over HTTP."""
    cls = config_class(config)
    found = cls.model_json_schema()
    hidden = {"out"} | free_settings(cls) - set(allowed)
    found["properties"] = {n: v for n, v in found["properties"].items() if n not in hidden}
    found["required"] = [name for name in found.get("required", []) if name not in hidden]
    return found


def free(config: str) -> Any:
    return sorted(free_settings(config_class(config)))


def estimate(module: str, settings: dict[str, Any]) -> Any:
    """Bytes and operations, as the module counts them."""
    from dataclasses import asdict

    from core.run import plain

    program = importlib.import_module(module)
    found = program.estimate(program.Config.model_validate(settings))
    return {**plain(asdict(found)), "peak": found.peak}


def unpack(archive: str, into: str, room: int) -> int:
    """The bytes that it holds unpacked."""
    try:
        return archives.unpack(Path(archive), Path(into), room)
    except OSError as error:  # the disk's fault, not the archive's
        raise Unanswered(str(error)) from error


def read(file: str, name: str) -> None:
    """Try what a program will read; faults say `name`, by which its owner knows the file."""
    from core.parquet import IMAGE, ParquetRows, open_parquet, require_column
    from core.prompts import SUFFIX, read_prompts

    path = Path(file)
    try:
        if path.suffix != SUFFIX:
            read_prompts(path)
        elif not len(ParquetRows(path)):  # its cells stay unread: they may unpack to anything
            raise UserError(f"{path} has no rows: write some.")
        else:
            with open_parquet(path) as opened:
                require_column(path, opened, ["prompt", IMAGE])
    except UserError as error:
        raise UserError(str(error).replace(file, name)) from error


def config_class(module: str) -> type[BaseModel]:
    return importlib.import_module(module).Config


def free_settings(cls: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of the settings that can hold a path or a word of the caller's."""
    found = set()
    for name, field in cls.model_fields.items():
        for leaf in _leaves(field.annotation):
            if isinstance(leaf, type) and issubclass(leaf, BaseModel):
                found |= free_settings(leaf, f"{prefix}{name}.")
            elif leaf is Any or (isinstance(leaf, type) and issubclass(leaf, str | Path | bytes)):
                found.add(prefix + name)
    return found


def _leaves(annotation: Any) -> list[Any]:
    """The types that an annotation is made of; a Literal is none, as its words are fixed."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return []
    if origin is typing.Annotated:
        return _leaves(typing.get_args(annotation)[0])
    if origin is dict:  # the names are free, but name nothing
        return _leaves(typing.get_args(annotation)[1])
    inner = [one for one in typing.get_args(annotation) if one is not ...]
    if origin is types.UnionType or inner:
        return [leaf for one in inner for leaf in _leaves(one)]
    return [annotation]


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (tuple, list)


def given(settings: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of what is set."""
    names = []
    for name, value in settings.items():
        names.append(prefix + name)
        if isinstance(value, dict):
            names += given(value, f"{prefix}{name}.")
    return names


QUESTIONS = {
    "check": check,
    "estimate": estimate,
    "free": free,
    "read": read,
    "schema": schema,
    "unpack": unpack,
}


def answer(questions: Questions, question: dict[str, Any]) -> dict[str, Any]:
    """The child lives on, whatever becomes of a question: it is everybody's."""
    try:
        return {"answer": questions[question.pop("do")](**question)}
    except Fault as fault:
        return {"error": str(fault), "param": fault.param}
    except UserError as error:
        return {"error": str(error)}
    except Unanswered as error:
        return {"broken": str(error)}
    except Exception as error:
        traceback.print_exc()
        kind = type(error).__name__  # its text may hold a place of the operator's
        return {"strange": f"this cannot be worked out ({kind}): try smaller or more usual values."}


def serve_questions(questions: Questions, idle: float) -> None:
    """The child: until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while True:
        line = _line(0, idle)
        if not line:
            return
        answers.write(json.dumps(answer(questions, json.loads(line))).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    serve_questions(QUESTIONS, float(sys.argv[1]))
