"""A command's name and settings in, its program run: the command line, from Python."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from core.config import Config, file_or_preset, from_mapping, read_yaml
from core.errors import UserError
from core.explain import CALL, positionals, unknown_name
from diffdoctor.commands import COMMANDS, Command

Files = str | Path | Sequence[str | Path]


def run(command: str, /, *places: Any, config: Files = (), **given: Any) -> int:
    """What `diffdoctor COMMAND PLACES --config CONFIG ...` does; its exit code, 0 when done.

    A training that was asked to stop has saved and returns `PAUSED`: the same call goes on.
    `places`: what has a place on the command line. `config`: YAML files or presets; later ones win
    over earlier, `given` over all. Settings are named as in YAML: `--sampling-steps 4` is
    `sampling_steps=4`, `--no-learn-empty` is `learn_empty=False`, `--json F` is `json_file=F`, and
    `--augmentation.noise 0` is `augmentation={"noise": 0}`.
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
    names = [config] if isinstance(config, str | Path) else config or ()
    files, values = [file_or_preset(cls, Path(name)) for name in names], {}
    for file in files:
        values |= _known(cls, read_yaml(file), str(file))
    own = _known(cls, _by_place(cls, places, given) | given, CALL)
    values |= {name: _plain(cls, name, value) for name, value in own.items()}
    return from_mapping(cls, values, ", ".join([*map(str, files), CALL]))


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise UserError(unknown_name(name, COMMANDS, "the commands"))
    return COMMANDS[name]


def _known(cls: type[Config], values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The same, unless a name is wrong: then what holds it is said, and no other."""
    wrong = next((name for name in values if name not in cls.model_fields), None)
    if wrong is not None:
        raise UserError(unknown_name(wrong, cls.model_fields, where))
    return values


def _by_place(cls: type[Config], places: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their places; where the last takes several, what is left over joins it."""
    names = positionals(cls)
    if len(places) > len(names) > 0 and _several(cls, names[-1]):
        places = [*places[: len(names) - 1], list(places[len(names) - 1 :])]
    if len(places) > len(names):
        known = f"only {', '.join(names)} by place" if names else "nothing by place"
        raise UserError(f"the call gives {len(places)} by place; this command takes {known}.")
    placed = dict(zip(names, places, strict=False))
    twice = next((name for name in placed if name in given), None)
    if twice:
        raise UserError(f"the call gives {twice!r} by place and by name; keep one.")
    return placed


def _plain(cls: type[Config], name: str, value: Any) -> Any:
    """As it would stand in a file: paths as texts, and a list where several may be given."""
    if isinstance(value, list | tuple):
        return [str(one) if isinstance(one, Path) else one for one in value]
    value = str(value) if isinstance(value, Path) else value
    return [value] if isinstance(value, str) and _several(cls, name) else value


def _several(cls: type[Config], name: str) -> bool:
    """Whether a setting takes a list and nothing else, or none."""
    field = cls.model_fields.get(name)
    kind: Any = None if field is None else field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return all(get_origin(one) is tuple for one in kinds if one is not NoneType)
