"""The `diffdoctor` command: words in, the program of one stage run; the exit code out.

0 done, 2 something a person can mend (one sentence says what), 1 anything else. A stage is
imported only when its command is called, so that `diffdoctor --help` costs no torch.
"""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from diffdoctor.commands import COMMANDS, Command

HELP = {"-h", "--help", "help"}


def usage(prefix: str = "") -> str:
    """One line and one example for every command that begins with `prefix`."""
    chosen = {name: one for name, one in COMMANDS.items() if name.startswith(prefix)}
    lines = [
        "diffdoctor finds the artifacts of image diffusion models and treats the model.",
        "",
        "usage: diffdoctor COMMAND [OPTIONS]      diffdoctor COMMAND --help lists the options",
        "",
    ]
    wide = max(map(len, chosen)) + 2
    for name, one in chosen.items():
        lines += [f"  {name:<{wide}}{one.does}", f"  {'':<{wide}}$ {one.example}"]
    return "\n".join(
        [*lines, "", "New here? `diffdoctor demo` shows it all in six to ten minutes."]
    )


def find(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The command that the first one or two words name, and the words left for its options."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and name in COMMANDS:
            return name, list(words[count:])
    return None


def suggestion(words: Sequence[str]) -> str:
    """One sentence for a command that does not exist, with the closest that does."""
    asked = " ".join(word for word in words[:2] if not word.startswith("-"))
    close = get_close_matches(asked, COMMANDS, n=1, cutoff=0.5) or get_close_matches(
        words[0], COMMANDS, n=1, cutoff=0.5
    )
    hint = f"did you mean `diffdoctor {close[0]}`?" if close else "see `diffdoctor --help`."
    return f"diffdoctor has no command '{asked or words[0]}'; {hint}"


def installed_version() -> str:
    try:
        return version("diffdoctor")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "not installed"


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not HELP & {*words}:
        return obey(words)
    try:  # help alone may be cut short (`--help | head`): what breaks a program's pipe is its own
        try:
            return obey(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the last flush goes there
        return 0


def obey(words: list[str]) -> int:
    """Run what the words name; the exit code."""
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if not words or words[0] in HELP:
        print(usage())
        return 0
    if words == ["--version"]:
        print(installed_version())
        return 0
    if words[0] in groups and (len(words) == 1 or words[1] in HELP):
        print(usage(words[0]))
        return 0
    found = find(words)
    if found is None:
        print(suggestion(words), file=sys.stderr)
        return 2
    name, options = found
    return run(COMMANDS[name], name, options)


def run(command: Command, name: str, options: Sequence[str]) -> int:
    """Hand the program its options; `core.config` parses, reports and exits.

    Where its settings have a module of their own, the program is imported once they are understood.
    """
    from core.config import run_program

    settings = import_module(command.settings or command.module).Config

    def main(config: Any) -> int | None:
        return import_module(command.module).main(config)

    run_program(main, settings, list(options), prog=f"diffdoctor {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
