"""Pseudo-labels by the actors of a local Ray, started by the program: the bytes of one process."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
RAY = ROOT / ".venv-ray/bin/python"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    config = SegformerConfig(variant="nano", prior=0.3)
    save_detector(SegformerDetector(config, seed=1), folder / "detector", {})
    with ShardWriter(folder / "store", 4) as writer:
        for i in range(18):
            image = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
            record = Record(key=f"s{i:02d}", source="pseudo")
            writer.write(Sample(record.key, image, None, record))
    return folder


def run(python, world, out, *words):
    command = [python, "-m", "data_balancing.pseudo_label", world / "store"]
    options = ["--detector", world / "detector", "--out", out, *words]
    # Its workers' niceness of 15 is never on a busy machine; its token would lie at home.
    own = {"RAY_worker_niceness": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return subprocess.run(
        [*command, *options], cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_the_bytes_are_those_of_one_process(world, tmp_path):
    assert RAY.is_file(), "run `make test-system`, which makes .venv-ray"
    done = run(RAY, world, tmp_path / "ray", "--cluster", "ray", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "18 labelled, 0 were there already" in done.stdout
    assert len(ShardStore(tmp_path / "ray")) == 18
    again = run(RAY, world, tmp_path / "ray", "--cluster", "ray", "--workers", "2")
    assert "0 labelled, 18 were there already" in again.stdout
    assert run(sys.executable, world, tmp_path / "plain").returncode == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")


def test_a_fault_in_a_worker_is_one_sentence(world, tmp_path):
    (shard, *_) = sorted((world / "store").glob("*.tar"))
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:700] + b"\0" + whole[701:])
        done = run(RAY, world, tmp_path / "ray", "--cluster", "ray", "--workers", "1")
    finally:
        shard.write_bytes(whole)
    assert done.returncode == 2
    assert "is damaged" in done.stderr.splitlines()[-1]
