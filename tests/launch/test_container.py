"""Dockerfile and compose file, read: nothing here builds or runs them."""

import tomllib
from pathlib import Path

import yaml

from core.config import load_config
from launch.commands import serve

ROOT = Path(__file__).resolve().parents[2]


def parsed(command):
    """The settings of a `serve` with these words."""
    assert command[0] == "serve" and all(isinstance(word, str) for word in command)
    return load_config(serve.Config, overrides=command[1:])


def test_what_is_served_in_a_container_can_be():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    service = compose["services"]["service"]
    (models,) = (one for one in service["volumes"] if one.endswith(":/models:ro"))
    here = f"={ROOT / models.partition(':')[0]}/"
    settings = parsed([word.replace("=/models/", here) for word in service["command"]])
    found = serve.named(settings.models)  # they are there, and what their names say
    assert (found["newest"] / "model_index.json").is_file()
    assert (found["first"] / "detector.json").is_file()
    assert service["stop_grace_period"] == "30s"
    assert settings.host == "0.0.0.0" and settings.log == "json"
    assert "PGPASSWORD" in service["environment"] and ":" not in settings.db.partition("://")[2]
    assert service["hostname"] and service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    (line,) = [one for one in lines("Dockerfile") if one.startswith("CMD [")]
    assert parsed(yaml.safe_load(line[4:])).root == Path("/service")


def lines(name):
    return (ROOT / name).read_text().splitlines()


def test_the_image_holds_every_package_and_runs_as_no_root():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    sent = {one[1:] for one in lines(".dockerignore") if one.startswith("!")}
    assert {name for name in packages if "*" not in name} <= sent
    assert {"pyproject.toml", "requirements.lock", "README.md", "LICENSE"} <= sent
    assert all((ROOT / name).exists() for name in sent)
    users = [one for one in lines("Dockerfile") if one.startswith("USER ")]
    assert users == ["USER diffdoctor"]
