"""A form waits for its settings: they come without torch, which takes seconds to import."""

import subprocess
import sys

import pytest

from launch.methods import METHODS

HEAVY = {"export"}
"""Methods whose settings stand in programs that need torch."""
LIGHT = sorted({one.config for name, one in METHODS.items() if name not in HEAVY})
SAID = "print(*{'torch', 'diffusers', 'transformers'} & {*sys.modules})"


def heavy(*modules: str) -> set[str]:
    """What importing these brings along, in a process of its own."""
    program = f"import sys, {', '.join(modules)}; {SAID}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_settings_come_without_torch():
    assert len(LIGHT) >= 3
    assert heavy("launch.service.checker", *LIGHT) == set()


@pytest.mark.slow
def test_control_a_program_brings_it():
    assert "torch" in heavy("detector.train")
