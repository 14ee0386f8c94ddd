"""Checkpoints: exact round trips, pruning, and the states of generators and optimizers."""

import random

import numpy as np
import pytest
import torch

from core import checkpoint
from core.errors import UserError


def saved(folder, *which, **options):
    for step in which:
        tensors = {"weights": {"w": torch.full((3,), float(step))}}
        checkpoint.save(folder, step, tensors, {"cursor": step}, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_is_exact(tmp_path):
    shared = torch.randn(4, 6)
    weights = {
        "half": torch.randn(3).bfloat16(),
        "view": shared.t(),
        "same": shared,
        "scalar": torch.tensor(7),
        "nan": torch.tensor([float("nan"), -0.0]),
        "grad": torch.randn(2, requires_grad=True),
    }
    state = {"cursor": [1, 2], "best": 0.1, "name": "ä"}
    path = checkpoint.save(tmp_path / "c", 12, {"weights": weights, "ema": {}}, state)
    assert path.name == "step-00000012"
    back = checkpoint.load_newest(tmp_path / "c")
    assert back is not None and back.step == 12 and back.state == state and back.path == path
    assert back.tensors["ema"] == {}
    for name, tensor in weights.items():
        other = back.tensors["weights"][name]
        assert other.dtype == tensor.dtype
        assert torch.equal(other.nan_to_num(5), tensor.detach().nan_to_num(5))


def test_keeps_the_last_two_the_best_and_the_pinned(tmp_path):
    for step in range(1, 8):
        saved(tmp_path, step, best=3, pinned=[1])
    assert checkpoint.steps(tmp_path) == [1, 3, 6, 7]
    saved(tmp_path, 8, keep=1)
    assert names(tmp_path) == ["step-00000008"]


def test_saving_a_step_again_replaces_it(tmp_path):
    saved(tmp_path, 1, 2)
    checkpoint.save(tmp_path, 2, {"weights": {"w": torch.ones(1)}}, {"cursor": "new"})
    assert checkpoint.load(tmp_path, 2).state == {"cursor": "new"}
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_none_only_where_nothing_was_ever_saved(tmp_path):
    assert checkpoint.load_newest(tmp_path / "absent") is None
    assert checkpoint.load_newest(tmp_path) is None


def test_a_missing_step_is_an_error_that_names_the_saved(tmp_path):
    saved(tmp_path, 4, 5)
    with pytest.raises(UserError, match="step-00000009.*4, 5"):
        checkpoint.load(tmp_path, 9)


def test_a_foreign_file_stem_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stem"):
        checkpoint.save(tmp_path, 1, {"../w": {}}, {})
    assert names(tmp_path) == []


def test_random_states_come_back():
    states = checkpoint.pack_rng()
    first = (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random(), random.gauss())
    checkpoint.unpack_rng(states)
    again = (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random(), random.gauss())
    assert again == first
    after = (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random(), random.gauss())
    assert after != first


@pytest.mark.parametrize(
    "kind",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ],
    ids=["adamw", "sgd", "amsgrad", "adagrad"],
)
def test_an_optimizer_goes_on_to_the_bit(tmp_path, kind):
    network = torch.nn.Linear(3, 2)
    optimizer = kind(network.parameters())
    _descend(network, optimizer, 3)
    tensors, state = checkpoint.optimizer_tensors(optimizer)
    files = {"weights": network.state_dict(), "optimizer": tensors}
    checkpoint.save(tmp_path, 3, files, {"optimizer": state})
    expected = _descend(network, optimizer, 3)

    back = checkpoint.load(tmp_path, 3)
    fresh = torch.nn.Linear(3, 2)
    fresh.load_state_dict(back.tensors["weights"])
    other = kind(fresh.parameters())
    # control: without the optimizer's own state the path is another one
    assert not torch.equal(_descend(_copy(fresh), kind(_copy(fresh).parameters()), 3), expected)
    checkpoint.restore_optimizer(other, back.tensors["optimizer"], back.state["optimizer"])
    assert torch.equal(_descend(fresh, other, 3), expected)
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def _copy(network):
    twin = torch.nn.Linear(3, 2)
    twin.load_state_dict(network.state_dict())
    return twin


def _descend(network, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        network(torch.linspace(-1, step + 1, 3)[None]).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])
