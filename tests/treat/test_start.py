"""Treating goes on from an adapter, or beside one that stays frozen."""

import pytest
import safetensors.torch
import torch

from core.errors import UserError
from core.image_files import list_images
from core.images import read_images
from tests.treat.setting import build, config, losses
from treat import train
from treat.adapter import attach, fuse, read_adapter
from treat.arms import Sampling, load_arm, open_arms


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def treated(world):
    """Two updates at a rate at which every image changes."""
    assert train.main(settings(world, world / "treated")) == 0
    return world / "treated"


def settings(world, out, **changes):
    given = {
        "steps": 2,
        "learning_rate": 0.1,
        "second_detector": None,
        "guard": "off",
        "lock_inside": 1,
    }
    return config(world, out, **(given | changes))


def watched(run, step):
    return read_images(list_images(run / f"watched/step-{step:08d}"))


def test_going_on_starts_where_the_other_ended(world, treated, tmp_path):
    assert train.main(settings(world, tmp_path, start=treated)) == 0
    assert torch.equal(watched(tmp_path, 0), watched(treated, 2))
    assert not torch.equal(watched(treated, 0), watched(treated, 2))  # control
    assert losses(tmp_path)[1]["lock"] > losses(treated)[1]["lock"] == 0  # held to the bare base


def test_beside_a_frozen_one_the_base_is_another(world, treated, tmp_path):
    assert train.main(settings(world, tmp_path, beside=treated)) == 0
    assert (watched(tmp_path, 0) - watched(treated, 2)).abs().max() <= 2 / 255
    assert (watched(tmp_path, 0) - watched(treated, 0)).abs().max() > 4 / 255  # control
    assert losses(tmp_path)[1]["lock"] == 0  # what it is held to has the frozen one too
    fresh = read_adapter(tmp_path, "last").tensors
    assert not any(
        torch.equal(fresh[n], t) for n, t in read_adapter(treated, "last").tensors.items()
    )


def test_an_adapter_in_the_weights_does_what_it_did_beside_them(world, treated):
    adapter, steps = read_adapter(treated, "last"), {}
    for name, put in (("attached", attach), ("fused", fuse), ("none", lambda *_: None)):
        model = load_arm(Sampling(str(world / "base"), 2, 16, 16, 1, "cpu", "fp32"), None)
        put(model.network, adapter)
        schedule, text = model.schedule(2, 16, 16), model.encode_prompts(["a hand"])
        steps[name] = model.step(model.noise([0], 16, 16), 0, schedule, text)
    torch.testing.assert_close(steps["fused"], steps["attached"], rtol=1e-4, atol=1e-5)
    assert (steps["none"] - steps["attached"]).abs().max() > 1e-2


def test_a_base_with_other_sides_is_not_fused(world, treated):
    network = load_arm(Sampling(str(world / "base"), 2, 16, 16, 1, "cpu", "fp32"), None).network
    adapter = read_adapter(treated, "last")
    name = adapter.modules[0]
    network.get_submodule(name).weight = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises(UserError, match=f"'{name}' has other sides"):
        fuse(network, adapter)


def test_what_stands_beside_may_not_change_midway(world, treated, tmp_path):
    first = treated / "checkpoints/step-00000002"
    assert train.main(settings(world, tmp_path / "run", beside=first, steps=1)) == 0
    again = settings(world, tmp_path / "run", beside=first, steps=2)
    for another in ('{"sha256": "another"}', "damaged"):
        (tmp_path / "run/beside.json").write_text(another)
        with pytest.raises(UserError, match="begun with another adapter"):
            train.main(again)
    (tmp_path / "run/beside.json").unlink()
    assert train.main(again) == 0


def test_a_comparison_must_know_what_stands_beside(world, treated, tmp_path):
    assert train.main(settings(world, tmp_path / "run", beside=treated, steps=1)) == 0
    with pytest.raises(UserError, match=f"'t' was trained beside {treated}: give --beside"):
        open_arms({"t": str(tmp_path / "run")}, "best")
    assert list(open_arms({"t": str(tmp_path / "run")}, "best", treated)) == ["base", "t"]


@pytest.mark.parametrize("name", ["start", "beside"])
def test_what_is_no_adapter_is_refused_first(world, treated, tmp_path, name):
    with pytest.raises(UserError, match="holds no adapter"):
        train.main(settings(world, tmp_path / "run", **{name: world / "real"}))
    with pytest.raises(UserError, match="no module|do not fit the base"):
        foreign = {"blocks.0.to_q.lora_A.weight": torch.ones(2, 8)}
        foreign["blocks.0.to_q.lora_B.weight"] = torch.ones(8, 2)
        safetensors.torch.save_file(foreign, tmp_path / "foreign.safetensors")
        train.main(settings(world, tmp_path / "run", **{name: tmp_path / "foreign.safetensors"}))
    if name == "start":
        with pytest.raises(UserError, match="have rank 2, and --rank is 4: give --rank 2"):
            train.main(settings(world, tmp_path / "run", start=treated, rank=4))
        with pytest.raises(UserError, match="use the base, rank and targets they came from"):
            train.main(settings(world, tmp_path / "run", start=treated, targets="attention"))
    assert not (tmp_path / "run").exists()
