"""Two processes (gloo) against one: the adapters are equal across ranks, and to one process's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.treat.setting import build, losses

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


def launch(processes, world, out):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc_per_node", str(processes), "-m", "tests.treat.two", str(world), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        safetensors.torch.load_file(f"{out}-rank{rank}.safetensors") for rank in range(processes)
    ]


def test_two_processes_end_in_the_bits_of_one(world, tmp_path):
    (one,) = launch(1, world, tmp_path / "one")
    first, second = launch(2, world, tmp_path / "two")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], one[name]) for name in first)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert any(tensor.any() for name, tensor in one.items() if "lora_B" in name)


def test_accelerate_launches_the_program():
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    words += [str(ROOT / "accelerate_configs" / "cpu.yaml"), "-m", "treat.train", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--sampling-steps" in done.stdout
