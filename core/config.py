"""A YAML file and a command line in, one frozen, checked settings object out.

Every program declares one subclass of `Config` in its own file; the same class is its YAML, its
command line (tyro), its HTTP body and its documentation. Settings stop at the program's `main`.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import tyro
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    field_validator,
)

from core.errors import UserError
from core.explain import complaint, explain, one_line, unknown_word
from core.storage import may_write

MAX_CONFIG_BYTES = 1_000_000
MOST = 2**63 - 1
"""Of a whole number: what random generators and databases hold."""


class Config(BaseModel):
    """Frozen settings; unknown keys are refused, defaults are checked like given values.

    Numbers are finite, whole ones of at most 64 bits with their sign.
    """

    presets: ClassVar[Path | None] = None
    """Folder of YAML files that `--config` also finds by their bare names."""
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _fits_64_bits(cls, value: Any) -> Any:
        if isinstance(value, int) and not -MOST <= value <= MOST:
            raise ValueError(f"a whole number may be {MOST} at most")
        return value


def _writable(path: Path | None) -> Path | None:
    """Before the work that fills the file, not after it."""
    if path is not None and path.is_dir():
        raise ValueError("this is a folder; name a file in it")
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}; create it first")
    if path is not None and not may_write(path.parent):
        raise ValueError(f"{path.parent} cannot be written to; name another folder")
    if path is not None and path.exists() and path.suffix != ".json":
        raise ValueError(f"{path} is there already and no .json file; name another")
    return path


JsonFile = Annotated[Path | None, AfterValidator(_writable), tyro.conf.arg(name="json")]
"""A `json_file` that figures are also written to (`json` alone is taken by pydantic)."""


def placed(name: str, several: bool = False) -> Any:
    """What `--help` calls a setting that is given by its place, beside `tyro.conf.Positional`: its
    kind, or that of each of several, says nothing of what belongs there."""
    if several:  # tyro takes none at all for an answer, and then calls it optional
        return tyro.conf.arg(metavar=f"{name} [{name} ...]", help_behavior_hint="(required)")
    return tyro.conf.arg(metavar=name)


def told(sentence: str) -> WrapValidator:
    """Whatever is wrong with a value, said so: of a pattern or of kinds it could be, pydantic would
    name the pattern, or the first kind only."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValueError(sentence) from error

    return WrapValidator(check)


C = TypeVar("C", bound=BaseModel)


def load_config(
    cls: type[C],
    files: Path | Sequence[Path] = (),
    overrides: Sequence[str] = (),
    prog: str | None = None,
) -> C:
    """Settings from one YAML file or several, of which later ones win, then command-line words.

    Fields without a default may come from either. `--help` prints the fields and exits.
    Raises `UserError` with one sentence for an unknown key, a missing or an invalid value.
    """
    paths = [files] if isinstance(files, Path) else files
    given, where = read_all(paths), ", ".join(map(str, paths))
    if not overrides and paths:
        return from_mapping(cls, given, where)
    default = _partial(cls, given, where) if given else tyro.MISSING
    return _parse_words(cls, list(overrides), default, prog)


def from_mapping(cls: type[C], values: Mapping[str, Any], where: str = "the settings") -> C:
    """Check a mapping (parsed YAML or JSON); raises `UserError` naming the first fault."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(explain(error, cls, where)) from error


def to_yaml(config: BaseModel) -> str:
    """The settings as YAML text that `load_config` reads back to an equal object."""
    values = config.model_dump(mode="json")
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) == values:
        return text
    return yaml.safe_dump(values, sort_keys=False)  # of U+0085 the reader makes a space


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, by the safe loader; raises `UserError` naming the file."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"cannot read the settings file {path} ({error.strerror}); check --config."
        ) from error
    if len(text) > MAX_CONFIG_BYTES:
        raise UserError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes; is it a settings file?")
    try:
        values = yaml.safe_load(text)
        twice = _repeated(yaml.compose(text, yaml.SafeLoader))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is no valid YAML ({one_line(str(error))}); mend it.") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} must hold `name: value` lines with quoted or plain text names.")
    if twice:
        raise UserError(f"{path} gives {twice!r} twice; keep one.")
    return values


def read_all(paths: Iterable[Path]) -> dict[str, Any]:
    """The values of several files in one mapping; later ones win."""
    return {name: value for path in paths for name, value in read_yaml(path).items()}


def _repeated(node: yaml.Node | None) -> str | None:
    """The first name that stands twice in one mapping, which YAML readers let pass."""
    if not isinstance(node, yaml.MappingNode):
        return None
    names = [key.value for key, _ in node.value]
    again = next((name for i, name in enumerate(names) if name in names[:i]), None)
    return again or next(filter(None, (_repeated(value) for _, value in node.value)), None)


def run_program(
    main: Callable[[C], int | None],
    cls: type[C],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Parse `argv` (default: the process's), call `main(config)`.

    A `UserError` becomes one line on stderr and exit code 2; a non-zero return value of `main`
    becomes the exit code; a second Ctrl-C ends with 130.
    """
    try:
        paths, words = _split_config(list(sys.argv[1:] if argv is None else argv))
        code = main(load_config(cls, [file_or_preset(cls, path) for path in paths], words, prog))
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(130) from error
    if code:
        raise SystemExit(code)


def _split_config(words: list[str]) -> tuple[list[Path], list[str]]:
    """Take every `--config FILE` (or `--config=FILE`) out of the words."""
    paths, rest = [], []
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            path = next(remaining, None)
            if path is None:
                raise UserError("--config needs a YAML file; write --config FILE.yaml.")
            paths.append(Path(path))
        elif word.startswith("--config="):
            paths.append(Path(word.removeprefix("--config=")))
        else:
            rest.append(word)
    return paths, rest


def presets(cls: type[BaseModel]) -> list[str]:
    """Names that `--config` finds beside files."""
    folder = getattr(cls, "presets", None)
    return [] if folder is None else sorted(path.stem for path in folder.glob("*.yaml"))


def file_or_preset(cls: type[BaseModel], path: Path) -> Path:
    """A file as it is; else the preset of that name; raises `UserError` where there is neither."""
    known = presets(cls)
    if not known or path.exists() or path.parent != Path() or path.suffix:
        return path
    if path.name not in known:
        raise UserError(f"there is no file or preset {path}; presets are {', '.join(known)}.")
    return cls.presets / f"{path.name}.yaml"  # pyright: ignore


def _partial(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """An instance that may lack required fields, as the command line's defaults."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        if any(fault["type"] != "missing" for fault in error.errors()):
            raise UserError(explain(error, cls, where)) from error
    checked: dict[str, Any] = {}
    annotated: Any = Annotated  # type checkers take no type that is made at run time
    for name, value in values.items():
        field = cls.model_fields[name]
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, dict):
            checked[name] = _partial(inner, value, where)
        else:
            checked[name] = TypeAdapter(annotated[inner, field]).validate_python(value)
    return cls.model_construct(**checked)


def _parse_words(cls: type[C], words: list[str], default: Any, prog: str | None) -> C:
    """tyro, with its boxes turned into one sentence."""
    box = io.StringIO()
    files = ", ".join(["FILE.yaml", *presets(cls)])
    description = f"{cls.__doc__ or ''}\n\nSettings may also come first: --config {files}."
    try:
        with contextlib.redirect_stderr(box):
            config, left = tyro.cli(
                cls,
                args=words,
                default=default,
                prog=prog,
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(complaint(cls, words, stop, box.getvalue())) from stop
    if left:
        raise UserError(unknown_word(cls, left) or f"unexpected argument {left[0]!r}; see --help.")
    return config
