"""The front door: teaches, suggests, answers mistakes with one sentence and exit code 2."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tyro
from pydantic import BaseModel

import diffdoctor
from diffdoctor import cli

ROOT = Path(__file__).resolve().parents[2]


def front(*words):
    command = [sys.executable, "-m", "diffdoctor.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_imports_no_torch():
    program = (
        "import sys, diffdoctor.cli as c; c.main(['--help']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, command in cli.COMMANDS.items():
        assert name in done.stdout and command.does in done.stdout
        assert command.example in done.stdout and len(command.does) < 80


LIGHT = {name: one for name, one in cli.COMMANDS.items() if one.settings}


def test_options_are_read_before_torch_is():
    """In one process, for its start is what takes long; the last is the control."""
    said = """
import contextlib, io, sys
from diffdoctor import cli
for name in sys.argv[1:]:
    for options in (["--help"], ["--outt", "x"]):
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()) as told:
            cli.main([*name.split(), *options])
    assert "--out" in told.getvalue(), told.getvalue()
    print(name, "torch" in sys.modules, file=sys.stderr)
"""
    assert len(LIGHT) >= 9
    command = [sys.executable, "-c", said, *LIGHT, "convert"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [line for line in done.stderr.splitlines() if line.endswith(("True", "False"))]
    assert found == [*(f"{name} False" for name in LIGHT), "convert True"]


def test_a_lora_file_is_looked_at_without_diffusers():
    """Nor with peft, before a file has its entry; torch, which is there, is the control."""
    program = """
import sys, treat.convert, treat.verify
brought = {"diffusers", "peft", "transformers"} & {*sys.modules}
print(len(brought), "torch" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]


@pytest.mark.parametrize("name", LIGHT)
def test_settings_that_come_alone_are_the_programs(name):
    command = LIGHT[name]
    program = import_module(command.module)
    assert program.Config is import_module(str(command.settings)).Config


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_examples_call_their_own_command(name):
    assert cli.COMMANDS[name].example.startswith(f"diffdoctor {name}")


@pytest.mark.parametrize(
    ("words", "closest"),
    [
        (["detectr", "train"], "detector train"),
        (["evalute"], "evaluate"),
        (["detector", "diagnos"], "detector diagnose"),
        (["treet", "--steps", "3"], "treat"),
        (["miniature", "lable"], "miniature label"),
        (["zzzz"], "--help"),
        (["--steps", "3"], "--help"),
    ],
)
def test_unknown_command(words, closest, capsys):
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert closest in said.err and said.err.count("\n") == 1 and not said.out


def test_a_group_lists_its_own(capsys):
    assert cli.main(["detector"]) == 0
    text = capsys.readouterr().out
    assert "detector train" in text and "miniature" not in text


def test_two_words_win_and_options_are_left():
    assert cli.find(["detector", "train", "--steps", "3"]) == ("detector train", ["--steps", "3"])
    assert cli.find(["treat", "--out", "x"]) == ("treat", ["--out", "x"])
    assert cli.find(["detector"]) is None


def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path):
    done = front("export", "--run", str(tmp_path / "none"), "--outt", str(tmp_path / "out"))
    assert done.returncode == 2, done.stderr
    *before, last = done.stderr.splitlines()
    assert last.startswith("error: ") and "'--out'" in last
    # Libraries may warn of one another's versions where bitsandbytes and torchao are installed.
    assert not any("Traceback" in line or line.startswith("error") for line in before)


@pytest.mark.parametrize("words", [["--help"], ["treat", "--help"]], ids=str)
def test_help_may_be_cut_short(words):
    command = [sys.executable, "-m", "diffdoctor.cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as child:
        assert child.stdout and child.stderr
        child.stdout.close()  # as `head` does
        assert "BrokenPipe" not in child.stderr.read()
    assert child.returncode == 0


def test_a_programs_own_broken_pipe_is_not_hidden(monkeypatch):
    def broken(*_args):
        raise BrokenPipeError("an annotator's")

    monkeypatch.setattr(cli, "run", broken)
    with pytest.raises(BrokenPipeError):
        cli.main(["treat", "--out", "x"])


def test_commands_name_programs_that_exist():
    """Every module that is there has `Config` and `main`, read without importing it."""
    for name, command in cli.COMMANDS.items():
        path = ROOT / (command.module.replace(".", "/") + ".py")
        assert path.is_file(), f"{name}: {path} is missing"
        tree = ast.parse(path.read_text())
        made = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        taken = [n.names for n in tree.body if isinstance(n, ast.ImportFrom)]
        made |= {name.asname or name.name for names in taken for name in names}
        assert {"Config", "main"} <= made, f"{name}: {path} lacks Config or main"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_what_is_given_by_its_place_has_a_name_and_a_meaning(name):
    """Not that of its kind alone: `PATH` says nothing of what belongs there."""
    settings = import_module(cli.COMMANDS[name].module).Config
    for field in settings.model_fields.values():
        if tyro.conf.Positional in field.metadata and field.is_required():
            names = [getattr(one, "metavar", None) for one in field.metadata]
            assert any(names) and "PATH" not in names and field.description


def silent(settings, within=""):
    """Options without a sentence of their own, also those of groups."""
    for name, field in settings.model_fields.items():
        if not field.description:
            yield within + name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from silent(kind, f"{name}.")


BENCHMARKS = [
    f"benchmarks.{path.stem}"
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "\nclass Config(" in path.read_text()
]


@pytest.mark.parametrize("module", [one.module for one in cli.COMMANDS.values()] + BENCHMARKS)
def test_every_option_has_a_meaning(module):
    assert list(silent(import_module(module).Config)) == []


def test_help_names_what_is_given_by_its_place(capsys):
    for words, shown in (
        ("data import", ["FORMAT SET", "- synthscars: {train,test}/images"]),
        ("data check", ["[-h] STORE"]),
        ("data stats", ["STORE [STORE ...]", "(required)"]),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words.split(), "--help"])
        text = capsys.readouterr().out
        assert not stop.value.code and all(part in text for part in shown), text
        assert "default: )" not in text


def test_public_names_are_found_lazily():
    assert diffdoctor.UserError.__module__ == "core.errors"
    with pytest.raises(AttributeError, match="load_base"):
        _ = diffdoctor.load_bases
    assert set(diffdoctor.__all__) == set(diffdoctor.API)
