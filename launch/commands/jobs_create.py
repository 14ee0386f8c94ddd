"""`diffdoctor jobs create`: a method, files and settings in; a job, or only its plan, out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import core.config
from core.errors import UserError
from launch.client import Unreached
from launch.commands.remote import Remote, line

IDS = "file-", "ftjob-", "ft:"


class Config(Remote):
    """Create a job. What names a file or folder of this machine is uploaded first."""

    method: str
    """artifact_detector, pixel_reward, export, flaw_highlighter, self_refining, correct or
    data_round."""
    model: str | None = None
    """What is trained: a model that the service knows, or a job's id."""
    training_file: str | None = None
    """A file, a folder, or the id of a file or job of the service."""
    validation_file: str | None = None
    """The same, of what is held out."""
    settings: Path | None = None
    """YAML of the method's settings, as its command takes them."""
    set: tuple[str, ...] = ()
    """NAME=VALUE each: further settings, such as steps=200."""
    seed: int | None = None
    """Of the job; its method's default without one."""
    suffix: str | None = None
    """Part of the result's name."""
    key: str | None = None
    """Of your choice: the same request with the same key makes one job. A file of this machine is
    a new upload each time: name its id instead."""
    dry_run: bool = False
    """Only show what would run and, of a treatment, the memory it would take."""


def main(config: Config) -> None:
    settings = core.config.read_yaml(config.settings) if config.settings else {}
    settings |= dict(assigned(one) for one in config.set)
    beside = ("model", "training_file", "validation_file", "seed", "suffix")
    more = {name: getattr(config, name) for name in beside if getattr(config, name) is not None}
    if config.dry_run:
        more["dry_run"] = True
    with config.client() as client:
        inputs = {
            n for one in client.methods() if one["id"] == config.method for n in one["inputs"]
        }
        known = {one["id"] for one in client.models()}
        for name in ("training_file", "validation_file"):
            more |= {name: local(more[name], known)} if name in more else {}
        settings = {n: local(v, known) if n in inputs else v for n, v in settings.items()}
        try:
            made = client.create(config.method, settings, config.key, **more)
        except Unreached:
            raise
        except UserError as error:
            told = [more.get(name) for name in ("training_file", "validation_file")]
            told += [value for name, value in settings.items() if name in inputs]
            raise UserError(f"{error}{nowhere(told, known, str(error))}") from error
    print(json.dumps(made, indent=2) if config.dry_run else line(made))


def assigned(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as in YAML."""
    name, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"--set takes NAME=VALUE, not {text!r}.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"the value of {name!r} is no valid YAML: put it in quotes.") from error


def local(value: Any, known: set[str]) -> Any:
    """A path, where this machine has it and the service does not; else the value."""
    if isinstance(value, list):
        return [local(one, known) for one in value]
    if not isinstance(value, str) or value in known:
        return value
    path = Path(value).expanduser()
    return path if path.exists() else value


def nowhere(values: Sequence[Any], known: set[str], error: str) -> str:
    """A further sentence on what the service did not know and may have been meant as a file of
    this machine, which there is not."""
    lists = [one if isinstance(one, list) else [one] for one in values]
    words = [word for one in lists for word in one if isinstance(word, str) and word not in known]
    shown = [one for one in words if f"({one[:80]})" in error or repr(one[:80]) in error]
    lost = [one for one in shown if not one.startswith(IDS)]
    return f" There is no file or folder {', '.join(lost)} on this machine." if lost else ""


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs create")
