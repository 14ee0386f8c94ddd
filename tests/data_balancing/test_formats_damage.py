"""Damaged sets in every layout: each entry is used or refused with a reason, and nothing else."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.image_files import encode_png
from data_balancing.entries import Entry, Labelled
from data_balancing.formats import FORMATS, Format, files
from data_balancing.formats.files import read_levels
from tests.data_balancing.damage import trials
from tests.data_balancing.sets import SETS

ROOT = Path(__file__).resolve().parents[2]


def test_every_entry_is_used_or_refused(tmp_path):
    seed = int.from_bytes(os.urandom(3))
    found = trials(120, seed, tmp_path / "set")
    assert found["faults"] == [], f"seed {seed}"
    assert found["used"] > 100 and found["refused"] > 10 and found["whole"] > 0
    assert found["slowest"] < 30  # seconds


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.trial)])
def test_damage_costs_neither_memory_nor_time(count, tmp_path):
    """In a program of its own, which a hang would leave without an answer."""
    seed = int.from_bytes(os.urandom(3))
    command = [sys.executable, "-W", "ignore", "-m", "tests.data_balancing.damage"]
    command += [str(count), str(seed), str(tmp_path / "set")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30 + count
    )
    found = json.loads(done.stdout)
    print(seed, found)
    assert found["faults"] == [], f"seed {seed}"
    assert found["used"] and found["refused"]
    assert 512 > found["peak"] > found["before"] > 30  # MiB; the lower bound shows that it measures


def test_the_program_takes_little_memory(tmp_path):
    """With a picture of as many pixels as are let in; torch alone would take all of it."""
    (tmp_path / "set/real").mkdir(parents=True)
    Image.new("RGB", (6000, 4000), "red").save(tmp_path / "set/real/large.png", compress_level=1)
    program = (
        "import sys; from diffdoctor.cli import main; from tests.data_balancing.damage import peak;"
        "main(sys.argv[1:]); print(peak(), 'torch' in sys.modules)"
    )
    words = ["data", "import", "plain", str(tmp_path / "set"), "--out", str(tmp_path / "store")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    most, torch = done.stdout.splitlines()[-1].split()
    assert "1 sound" in done.stdout and torch == "False"
    assert 200 < float(most) < 512  # MiB


def careless(root: Path, images: Path | None):
    """IMDL's pairs as a script would read them."""
    for pair in json.loads(root.read_bytes()):
        yield Entry(str(pair[0]), partial(_careless, root.parent / pair[0]))


def _careless(path: Path) -> Labelled:
    return Labelled(read_levels(path), None, {"source": "human"})


def test_control_a_careless_reader_is_caught(tmp_path):
    formats = {"imdl": Format(careless, "", "", False)}
    faults = trials(60, 0, tmp_path / "set", formats)["faults"]
    assert any("JSONDecodeError" in fault or "Unicode" in fault for fault in faults)
    assert any("inner" in fault for fault in faults)


def test_control_unchecked_structures_are_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "rows", lambda value, what: value)
    monkeypatch.setattr("data_balancing.formats.imdl.rows", files.rows)
    formats = {"imdl": FORMATS["imdl"]}
    assert trials(120, 0, tmp_path / "set", formats)["faults"]


def test_memory_does_not_grow_with_the_images(tmp_path):
    """Pictures of 3 MB each, decoded one by one: sixteen more cost no more."""
    assert "photographs" in SETS
    level = np.zeros((1024, 1024, 3), np.uint8)
    program = (
        "import sys; from pathlib import Path; from tests.data_balancing.damage import peak;"
        "from data_balancing.formats import FORMATS;"
        "entries = list(FORMATS['photographs'].read(Path(sys.argv[1]), None));"
        "entries[0].read(); before = peak();"
        "held = [entry.read() for entry in entries if sys.argv[2] == 'hold' or not entry.read()];"
        "print(peak() - before)"
    )
    for n in range(17):
        (tmp_path / f"{n}.png").write_bytes(encode_png(level))
    grown = []
    for how in ("one by one", "hold"):
        command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path), how]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        grown.append(float(done.stdout))
    assert grown[0] < 20 < 40 < grown[1]  # MiB; the second holds them all
