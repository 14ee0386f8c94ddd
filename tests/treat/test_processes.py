"""Two processes (gloo) against one: the adapters are equal across ranks, and to one process's."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from accelerate.commands.config.config_args import load_config_from_file

from core.errors import UserError
from core.wishes import ask
from tests.treat.setting import build, config, losses
from tests.treat.two import GRADIENTS, HELD
from treat import shard, train
from treat.shard import check_sharding

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "accelerate_configs"
SHARED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",  # else transformers leaves weights of the others out
}
"""What `accelerate launch` says to each process for fsdp2.yaml."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


def launch(processes, world, out, menu="redraws", steps=2, images=2, **environment):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc_per_node", str(processes), "-m", "tests.treat.two", str(world), str(out)]
    words += [menu, str(steps), str(images)]
    own = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment}
    done = subprocess.run(
        words, env={**os.environ, **own}, capture_output=True, text=True, timeout=60 * (5 + steps)
    )
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


@pytest.mark.trial
@pytest.mark.parametrize("menu", ["redraws", "chain"])
def test_twenty_steps_of_two_processes_end_in_the_bits_of_one(world, tmp_path, menu):
    (one,) = launch(1, world, tmp_path / "one", menu, steps=20)
    first, second = launch(2, world, tmp_path / "two", menu, steps=20)
    assert max(losses(tmp_path / "one")) == 20
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], one[name]) for name in first)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def apart(one, two):
    """Relative L2 of every step's gradient."""
    return (two[GRADIENTS] - one[GRADIENTS]).norm(dim=1) / one[GRADIENTS].norm(dim=1)


@pytest.mark.trial
@pytest.mark.parametrize("images", [4, 8])
def test_the_gradient_of_half_batches_is_that_of_the_whole(world, tmp_path, images):
    if not (world / "start").is_dir():
        train.main(config(world, world / "start", steps=2, watch_every=0))
    given = {"menu": "gradient", "steps": 20, "images": images}
    (one,) = launch(1, world, tmp_path / "one", **given)
    first, second = launch(2, world, tmp_path / "two", **given)
    (other,) = launch(1, world, tmp_path / "other", **given | {"images": images // 2})
    print("largest of 20 steps:", apart(one, first).max().item())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(one[GRADIENTS]) == 20 and apart(one, first).max() <= 1e-5
    assert apart(one, other).min() > 1e-2  # control: half of the images


def test_a_run_goes_on_with_another_number_of_processes(world, tmp_path):
    (whole,) = launch(1, world, tmp_path / "whole")
    launch(2, world, tmp_path / "moved", steps=1)
    (moved,) = launch(1, world, tmp_path / "moved")
    assert all(torch.equal(moved[name], weights) for name, weights in whole.items())
    assert losses(tmp_path / "moved") == losses(tmp_path / "whole")


def test_a_network_that_is_shared_out_learns_the_same(world, tmp_path):
    whole = launch(2, world, tmp_path / "whole", "chain")
    (tmp_path / "shared").mkdir()
    ask(tmp_path / "shared", "sample")  # which all of them draw
    launch(2, world, tmp_path / "shared", "chain", steps=1, **SHARED)  # and resumed:
    first, second = launch(2, world, tmp_path / "shared", "chain", **SHARED)
    held = [ranks[HELD].item() for ranks in ((*whole, first, second))]
    assert held[0] == held[1] and max(held[2:]) < 0.75 * held[0]  # the blocks are most of it
    for name, weights in whole[0].items():
        if name != HELD:
            assert torch.equal(first[name], second[name])
            torch.testing.assert_close(first[name], weights, rtol=1e-3, atol=1e-5)
    for step, figures in losses(tmp_path / "whole").items():
        assert losses(tmp_path / "shared")[step] == pytest.approx(figures, rel=1e-3, abs=1e-5)
    for step in (1, 2):
        assert (tmp_path / f"shared/pictures/step-0000000{step}.png").is_file()


def test_what_stands_beside_is_noted_by_the_main_process_alone(world, tmp_path):
    train.main(config(world, world / "beside", steps=1))
    first, second = launch(2, world, tmp_path / "two", "beside", steps=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "two/beside.json").is_file()


def test_what_cannot_be_shared_out_is_refused(world, tmp_path, monkeypatch):
    for name, value in SHARED.items():
        monkeypatch.setenv(name, value)
    check_sharding("int8", True)  # one process: nothing to share out
    two = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(shard, "this_process", lambda: two)
    check_sharding("no", False)
    with pytest.raises(UserError, match="int8 weights cannot be shared out"):
        train.main(config(world, tmp_path / "run", quantise="int8"))
    with pytest.raises(UserError, match="leave compile_blocks out"):
        train.main(config(world, tmp_path / "run", compile_blocks=True))
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="set fsdp_version to 2"):
        train.main(config(world, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS.glob("*.yaml")])
def test_accelerate_reads_every_configuration(name):
    read = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (read.num_machines > 1) == (name == "many_nodes")
    assert (read.fsdp_config or {}).get("fsdp_version") == (2 if name == "fsdp2" else None)


def test_accelerate_says_to_each_process_what_shares_the_network_out(tmp_path):
    (tmp_path / "said.py").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    words += [str(CONFIGS / "fsdp2.yaml"), "--num_processes", "1", str(tmp_path / "said.py")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {name: said.get(name) for name in SHARED} == SHARED


def test_accelerate_starts_several_processes_on_the_cpu(tmp_path):
    said = "from core.processes import this_process\nplace = this_process()\n"
    said += "print(place.num_processes, place.process_index, place.device.type, place.backend)\n"
    (tmp_path / "said.py").write_text(said)
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    words += [str(CONFIGS / "many_cpus.yaml"), str(tmp_path / "said.py")]
    own = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, **own}
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["2 0 cpu gloo", "2 1 cpu gloo"]


def test_accelerate_launches_the_program():
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    words += [str(ROOT / "accelerate_configs" / "cpu.yaml"), "-m", "treat.train", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--sampling-steps" in done.stdout
