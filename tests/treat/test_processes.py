"""Two processes (gloo) against one: the adapters are equal across ranks, and to one process's."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser

from core.errors import UserError
from core.wishes import ask
from tests.forked import served
from tests.treat.setting import build, config, losses
from tests.treat.two import BEST, GRADIENTS, HELD
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


@pytest.fixture(scope="module")
def launch():
    """Processes of `tests.treat.two`; what each of them leaves."""
    with served("tests.treat.two") as call:

        def launch(processes, world, out, menu="redraws", steps=2, images=2, **environment):
            given = {"world": str(world), "out": str(out), "menu": menu}
            given |= {"steps": steps, "images": images}
            assert call(processes, given, **environment) == [0] * processes
            return [
                safetensors.torch.load_file(f"{out}-rank{rank}.safetensors")
                for rank in range(processes)
            ]

        yield launch


@pytest.fixture(scope="module")
def whole(launch, world, tmp_path_factory):
    """What one process ends in, and its figures."""
    out = tmp_path_factory.mktemp("whole") / "run"
    (one,) = launch(1, world, out)
    return one, losses(out)


def test_two_processes_end_in_the_bits_of_one(launch, world, whole, tmp_path):
    one, figures = whole
    first, second = launch(2, world, tmp_path / "two")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], one[name]) for name in first)
    assert losses(tmp_path / "two") == figures
    assert any(tensor.any() for name, tensor in one.items() if "lora_B" in name)
    assert one[BEST][0] in (1, 2) and len(one[BEST]) == 3 + 16  # of two looks at 16 images


@pytest.mark.trial
@pytest.mark.parametrize("menu", ["redraws", "chain"])
def test_twenty_steps_of_two_processes_end_in_the_bits_of_one(launch, world, tmp_path, menu):
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
def test_the_gradient_of_half_batches_is_that_of_the_whole(launch, world, tmp_path, images):
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


def test_a_run_goes_on_with_another_number_of_processes(launch, world, whole, tmp_path):
    one, figures = whole
    launch(2, world, tmp_path / "moved", steps=1)
    (moved,) = launch(1, world, tmp_path / "moved")
    assert all(torch.equal(moved[name], weights) for name, weights in one.items())
    assert losses(tmp_path / "moved") == figures


def test_a_network_that_is_shared_out_learns_the_same(launch, world, tmp_path):
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


def test_what_stands_beside_is_noted_by_the_main_process_alone(launch, world, tmp_path):
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


def launched(name, words, capfd):
    """What a program says that accelerate starts by a configuration."""
    given = ["--config_file", str(CONFIGS / f"{name}.yaml"), *map(str, words)]
    capfd.readouterr()
    launch_command(launch_command_parser().parse_args(given))
    return capfd.readouterr().out


def test_accelerate_says_to_each_process_what_shares_the_network_out(tmp_path, capfd):
    (tmp_path / "said.py").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    said = json.loads(launched("fsdp2", ["--num_processes", 1, tmp_path / "said.py"], capfd))
    assert {name: said.get(name) for name in SHARED} == SHARED


def test_accelerate_starts_several_processes_on_the_cpu(tmp_path, monkeypatch, capfd):
    said = """
import sys
from core.processes import this_process
place = this_process()
words = (place.num_processes, place.process_index, place.device.type, place.backend)
sys.stdout.write(" ".join(map(str, words)) + "\\n")  # at once: unbuffered, words would mix
"""
    (tmp_path / "said.py").write_text(said)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    said = launched("many_cpus", [tmp_path / "said.py"], capfd)
    assert sorted(said.splitlines()) == ["2 0 cpu gloo", "2 1 cpu gloo"]


def test_accelerate_launches_the_program(capfd):
    assert "--sampling-steps" in launched("cpu", ["-m", "treat.train", "--help"], capfd)
