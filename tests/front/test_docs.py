"""Every `diffdoctor` line of the README and of these docs is a command that is understood."""

import shlex
from importlib import import_module
from pathlib import Path

import pytest

from core.config import load_config, read_yaml
from diffdoctor import cli

ROOT = Path(__file__).resolve().parents[2]


def commands(name: str) -> list[str]:
    """Of the fenced blocks, with what was continued joined and comments dropped."""
    blocks = (ROOT / name).read_text().split("```")[1::2]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    kept = [line.split(" #")[0].strip() for line in lines]
    return [line for line in kept if line.startswith("diffdoctor ") and line != "diffdoctor"]


PAGES = (
    "README.md",
    "docs/data.md",
    "docs/service.md",
    "docs/sister_methods.md",
    "docs/treating.md",
)
ALL = [line for name in PAGES for line in commands(name)]


@pytest.mark.parametrize("line", ALL)
def test_it_is_understood(line):
    found = cli.find(shlex.split(line)[1:])
    assert found is not None, line
    name, words = found
    settings = import_module(cli.COMMANDS[name].module).Config
    files = []
    if "--config" in words:
        at = words.index("--config")
        preset, words = words[at + 1], words[:at] + words[at + 2 :]
        files = [settings.presets / f"{preset}.yaml"]
        assert read_yaml(files[0])
    load_config(settings, files, words)


def test_there_are_some():
    assert len(ALL) > 20
