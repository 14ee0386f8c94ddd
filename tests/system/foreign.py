"""Masks in, what a tool's own package makes of them out: a script in that package's environment."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(1, 1), (1, 9), (9, 1), (3, 7), (16, 16), (33, 65), (64, 300)]


def call(tool, request, script=None):
    """The answer of `tests/system/TOOL_side.py`, or of another script, to a JSON value."""
    python = ROOT / f".venv-{tool.replace('_', '-')}" / "bin" / "python"
    if not python.is_file():
        pytest.fail(f"{python} is missing: run `make test-system`, which makes it.")
    script = ROOT / "tests" / "system" / f"{script or tool}_side.py"
    # -I: neither our packages nor what lies beside the script may shadow what is installed there.
    done = subprocess.run(
        [python, "-I", script], input=json.dumps(request), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def masks(soft):
    """Random, blotchy, full and empty masks of every shape; levels 0..255, or 0 and 255."""
    found = []
    for i, shape in enumerate(SHAPES):
        draw = np.random.default_rng(i)
        noise = draw.integers(0, 256, shape, dtype=np.uint8)
        blotches = np.kron(draw.integers(0, 256, (8, 8)), np.ones((40, 40)))
        blotches = blotches[: shape[0], : shape[1]].astype(np.uint8)
        found += [noise, blotches, np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)]
    found.append(np.zeros((300, 400), np.uint8))  # longer than the longest run
    return found if soft else [(mask >= 128) * np.uint8(255) for mask in found]
