"""A command's name and settings in, its program run: the command line, from Python."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from core.config import Config, found, from_mapping, read_all
from core.errors import UserError
from core.explain import positionals, unknown_name
from diffdoctor.commands import COMMANDS, Command

Files = str | Path | Sequence[str | Path]


def run(command: str, /, *places: Any, config: Files = (), **given: Any) -> int:
    """What `diffdoctor COMMAND PLACES --config CONFIG ...` does; its exit code, 0 when done.

    A training that was asked to stop has saved and returns `core.run.PAUSED`: the same call goes
    on. `places`: what has a place on the command line (a list where that takes several). `config`:
    YAML files or presets; later ones win over earlier, `given` over all. Settings are named as in
    YAML: `--sampling-steps 4` is `sampling_steps=4`, `--json F` is `json_file=F`.
    Raises `UserError` with the sentence that the command would end with.
    """
    checked = settings(command, *places, config=config, **given)
    return import_module(_command(command).module).main(checked) or 0


def settings(command: str, /, *places: Any, config: Files = (), **given: Any) -> Config:
    """The checked settings of a command, frozen: what its program's `main` takes.

    Raises `UserError` for an unknown command or name, a missing or an invalid value.
    """
    one = _command(command)
    cls = import_module(one.settings or one.module).Config
    names = [config] if isinstance(config, str | Path) else config
    files = [found(cls, Path(name)) for name in names]
    values = read_all(files) | _by_place(cls, places, given) | given
    return from_mapping(cls, values, ", ".join([*map(str, files), "the call"]))


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise UserError(unknown_name(name, COMMANDS, "the commands"))
    return COMMANDS[name]


def _by_place(cls: type[Config], places: Sequence[Any], given: dict[str, Any]) -> dict[str, Any]:
    names = positionals(cls)
    if len(places) > len(names):
        known = f"only {', '.join(names)} by place" if names else "nothing by place"
        raise UserError(f"the call gives {len(places)} by place; this command takes {known}.")
    found = dict(zip(names, places, strict=False))
    twice = next((name for name in found if name in given), None)
    if twice:
        raise UserError(f"the call gives {twice!r} by place and by name; keep one.")
    return found
