"""Settings: YAML first, command line over it, every fault one sentence with its cure."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import tyro
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from core.config import (
    Config,
    JsonFile,
    from_mapping,
    load_config,
    placed,
    run_program,
    to_yaml,
    told,
)
from core.errors import UserError


class Inner(Config):
    width: int = Field(3, description="how wide", ge=1)
    need: str


class Settings(Config):
    """What the program does."""

    sources: Annotated[list[Path], tyro.conf.Positional, placed("SOURCE", several=True)] = Field(
        description="the files", min_length=1
    )
    out: Path
    rate: float = Field(1e-3, description="step size", gt=0)
    on: bool = True
    kind: Literal["a", "b"] = "a"
    """which of two"""
    names: tuple[str, ...] = ()
    chosen: Literal["all", "some"] | tuple[int, ...] = "all"
    share: Annotated[int | float, Field(gt=0), told("write a number above 0")] = 1
    optional: Inner | None = None
    inner: Inner = Inner(need="x")

    @model_validator(mode="after")
    def no_seven(self):
        if self.rate == 7:
            raise ValueError("rate 7 is unlucky; take 6")
        return self


def outcome(capsys, *words):
    """Exit code and the one line on stderr of a run that prints its settings."""
    with pytest.raises(SystemExit) as stop:
        run_program(lambda config: print(config), Settings, words, prog="p")
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return stop.value.code, text


def test_command_line():
    words = "a b --out o --no-on --kind b --names x y --inner.width 5 --rate 2"
    config = load_config(Settings, overrides=words.split())
    assert config.sources == [Path("a"), Path("b")] and config.out == Path("o")
    assert (config.on, config.kind, config.names, config.inner.width) == (False, "b", ("x", "y"), 5)


def test_command_line_wins_over_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("out: z\nrate: 1e-4\ninner: {width: 8, need: q}\n'on': false\n")
    seen = []
    run_program(seen.append, Settings, ["--config", str(path), "a", "--inner.width", "9"])
    (config,) = seen
    assert (config.rate, config.on, config.inner) == (1e-4, False, Inner(width=9, need="q"))


def test_required_names_may_come_from_either_side(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("rate: 2\ninner: {width: 8}\n")
    config = load_config(Settings, path, ["a", "--out", "o", "--inner.need", "k"])
    assert config.inner == Inner(width=8, need="k") and config.rate == 2.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a --out o --raet 5", "unknown name '--raet' in the command line; did you mean '--rate'?"),
        ("a --raet 5", "did you mean '--rate'?"),
        ("a --out o --rate 7 --raet 5", "did you mean '--rate'?"),  # before what does not agree
        ("a --out o --width 5", "did you mean '--inner.width'?"),
        ("a --out o --rate -5", "'rate' in the command line is -5.0"),
        ("a --out o --rate x", "--rate: could not convert string to float: 'x'"),
        ("a --out o --rate 7", "rate 7 is unlucky; take 6"),
        ("a --out o --kind c", "'c'"),
        ("a --out o --chosen foo", "--chosen takes {all,some} or INT [INT ...], not 'foo'; see"),
        ("a --out o --share -2", "'share' in the command line is -2: write a number above 0."),
        ("a --out o --inner.width 0", "greater than or equal to 1"),
        (f"a --out o --inner.width {2**63}", "may be 9223372036854775807 at most"),
        ("a --out o --rate inf", "finite"),
        ("a", "error: --out PATH is missing; see --help."),
        (
            "--out o",
            "'sources' in the command line has 0, and needs 1 at least; give them as plain",
        ),
        ("a --config", "--config needs a YAML file"),
        ("a --config nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_faults_of_the_command_line(capsys, words, said):
    code, text = outcome(capsys, *words.split())
    assert code == 2 and said in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raet: 1", "unknown name 'raet' in {path}; did you mean 'rate'?"),
        ("inner: {widht: 1, need: x}", "did you mean 'inner.width'?"),
        ("sources: [a]", "'out' is missing in {path}; give it there or as --out."),
        ("sources: []\nout: b", "'sources' in {path} has 0, and needs 1 at least; give them as"),
        ("sources: [a]\nout: b\nrate: -1", "'rate' in {path} is -1"),
        ("sources: [a]\nout: b\nrate: .inf", "'rate' in {path} is inf: Input should be a finite"),
        ("sources: [a]\nout: b\nrate: .nan", "'rate' in {path} is nan: Input should be a finite"),
        (
            "sources: [a]\nout: b\ninner: {width: 9223372036854775808, need: x}",
            "may be 9223372036854775807 at most",
        ),
        ("sources: [a\nout: b", "no valid YAML"),
        ("- a", "`name: value` lines"),
        ("on: true", "`name: value` lines"),  # YAML 1.1 reads the name as a truth value
        ("!!python/object/apply:os.system ['touch sentinel']", "no valid YAML"),
        ("out: a\nout: b", "'out' twice"),
    ],
)
def test_faults_of_a_file(capsys, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(text)
    code, line = outcome(capsys, "--config", str(path))
    assert code == 2 and said.format(path=path) in line
    assert not (tmp_path / "sentinel").exists()


def test_help_shows_descriptions_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        run_program(lambda config: None, Settings, ["--help"], prog="p")
    text = capsys.readouterr().out
    assert not stop.value.code
    assert "p [-h] [OPTIONS] SOURCE [SOURCE ...]" in text and "the files (required)" in text
    for words in ("What the program does.", "step size", "0.001", "which of two", "--config"):
        assert words in text


def test_frozen_and_closed():
    config = load_config(Settings, overrides=["a", "--out", "o"])
    with pytest.raises(ValidationError):
        config.rate = 2.0  # type: ignore[misc]
    with pytest.raises(UserError, match="did you mean 'rate'"):
        from_mapping(Settings, {"sources": ["a"], "out": "o", "raet": 1})


@given(
    st.floats(1e-300, 1e300).filter(lambda rate: rate != 7),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.booleans(),
)
@example(1.0, "U+0085: \x85", True)
def test_yaml_reads_back_equal(rate, text, on):
    config = Settings(
        sources=[Path("a")], out=Path("b"), rate=rate, on=on, names=(text,), inner=Inner(need=text)
    )
    assert from_mapping(Settings, yaml.safe_load(to_yaml(config))) == config


def test_exit_codes(capsys):
    words = ["a", "--out", "o"]
    run_program(lambda config: None, Settings, words)
    run_program(lambda config: 0, Settings, words)
    for main, code in [(lambda config: 75, 75), (interrupted, 130), (refused, 2)]:
        with pytest.raises(SystemExit) as stop:
            run_program(main, Settings, words)
        assert stop.value.code == code
    assert "error: no such base; name another." in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # our own faults keep their traceback
        run_program(lambda config: 1 // 0, Settings, words)


def interrupted(config):
    raise KeyboardInterrupt


def refused(config):
    raise UserError("no such base; name another.")


def test_presets_are_found_by_name(tmp_path, monkeypatch, capsys):
    class WithPresets(Config):
        presets: ClassVar[Path | None] = tmp_path / "presets"
        size: int = 1

    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/large.yaml").write_text("size: 9\n")
    (tmp_path / "own.yaml").write_text("size: 3\n")
    monkeypatch.chdir(tmp_path)
    found = []
    for words in (
        ["--config", "large"],
        ["--config", "large", "--size", "8"],
        ["--config=own.yaml"],
    ):
        run_program(lambda config: found.append(config.size), WithPresets, words)
    run_program(
        lambda config: found.append(config.size),
        WithPresets,
        ["--config", "large", "--config", "own.yaml"],
    )
    assert found == [9, 8, 3, 3]
    for name, message in (("huge", "presets are large"), ("huge.yaml", "check --config")):
        with pytest.raises(SystemExit):
            run_program(lambda config: None, WithPresets, ["--config", name])
        assert message in capsys.readouterr().err


class Measured(Config):
    json_file: JsonFile = None


def test_figures_overwrite_nothing_but_figures(tmp_path):
    for name in ("figures.json", "lora.safetensors"):
        (tmp_path / name).write_text("{}")
    for name in ("figures.json", "new.json", "new"):
        assert load_config(Measured, overrides=["--json", str(tmp_path / name)]).json_file
    with pytest.raises(UserError, match=r"is there already and no \.json file; name another"):
        load_config(Measured, overrides=["--json", str(tmp_path / "lora.safetensors")])
    with pytest.raises(UserError, match="'--jsno' in the command line; did you mean '--json'"):
        load_config(Measured, overrides=["--json", str(tmp_path / "new.json"), "--jsno", "a"])


def test_figures_go_where_something_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("core.config.may_write", lambda folder: folder != tmp_path)
    words = r"^'--json' in the command line is '.*new\.json': .*cannot be written to; name another"
    with pytest.raises(UserError, match=words):
        load_config(Measured, overrides=["--json", str(tmp_path / "new.json")])
