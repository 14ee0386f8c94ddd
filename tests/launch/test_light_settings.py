"""A form waits for its settings: they come without torch, and say what they mean."""

import subprocess
import sys

import pytest

from launch.methods import METHODS
from launch.service import checker

LIGHT = sorted({one.config for one in METHODS.values()})
SAID = "print(*{'torch', 'diffusers', 'transformers'} & {*sys.modules})"


def heavy(*modules: str) -> set[str]:
    """What importing these brings along, in a process of its own."""
    program = f"import sys, {', '.join(modules)}; {SAID}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_settings_come_without_torch():
    assert len(LIGHT) >= 7
    assert heavy("launch.service.checker", "core.prompts", *LIGHT) == set()


def test_a_schema_says_what_settings_mean():
    told = checker.schema("treat.settings", [])["properties"]
    assert told["steps"]["description"] == "Updates of the adapters."
    assert sum("description" in one for one in told.values()) > len(told) / 2


@pytest.mark.slow
def test_control_a_program_brings_it():
    assert "torch" in heavy("detector.train")
