"""The best step is the second detector's choice, among those that still know real images."""

import pytest
import torch

from tests.treat.setting import build, config, losses
from treat import train
from treat.watch import Best, Resting, scores, sharpness


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


def looks(best, *pairs):
    """(second score, loss on real images) at steps 0, 10, 20 ..."""
    return [
        best.look(10 * i, {"second_mean": score, "watch_offline": offline})
        for i, (score, offline) in enumerate(pairs)
    ]


def test_lowest_second_score_within_the_rise():
    best = Best(rise=0.2)
    said = looks(best, (0.1, 1.0), (0.5, 1.0), (0.4, 1.1), (0.45, 1.0), (0.2, 1.3))
    assert said == [False, True, True, False, False]  # the base sets the scale; 1.3 rose too far
    assert (best.step, best.score, best.since) == (20, 0.4, 2)
    assert looks(Best(rise=0.5), (0.1, 1.0), (0.2, 1.3)) == [False, True]  # control


def test_state_is_json_and_comes_back():
    for pairs in ([], [(0.1, 1.0)], [(0.1, 1.0), (0.5, 1.0)]):
        best, again = Best(rise=0.2), Best(rise=0.2)
        looks(best, *pairs)
        again.restore(best.state())
        assert again == best


def test_patience_ends_a_run_early(world, tmp_path):
    settings = config(world, tmp_path / "run", steps=50, watch_every=1, patience=2)
    settings = settings.model_copy(update={"learning_rate": 1e-12, "offline_rise": 0.0})
    assert train.main(settings) == 0
    assert max(losses(tmp_path / "run")) < 50


def test_half_precision_runs_and_learns(world, tmp_path):
    changes = {"mixed_precision": "bf16", "base_dtype": "bfloat16", "steps": 2}
    assert train.main(config(world, tmp_path / "run", **changes)) == 0
    assert losses(tmp_path / "run")[2]["gradient_norm"] > 0


def test_scores_by_hand():
    maps = torch.zeros(2, 1, 2, 2)
    maps[0, 0, 0] = torch.tensor([0.5, 0.4])
    found = scores(maps, "x")
    assert found["x_frequency"] == 0.5 and found["x_area"] == 1 / 8
    assert found["x_mean"] == pytest.approx(0.9 / 8)


def test_blur_is_less_sharp():
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert sharpness(torch.nn.functional.avg_pool2d(images, 3, 1)) < sharpness(images) / 2


class Moved(torch.nn.Module):
    """Notes where it is told to go, and whether it is there when it looks."""

    def __init__(self):
        super().__init__()
        self.went = []

    def to(self, device):
        self.went.append(str(device))
        return self

    def forward(self, images, *prompts):
        self.went.append(f"looks with {len(prompts)}")
        if not images.numel():
            raise RuntimeError("nothing to look at")
        return images


def test_what_only_looks_is_on_the_device_meanwhile():
    network = Moved()
    look = Resting(network)
    look(torch.rand(1, 3, 4, 4, device="meta"))
    look(torch.rand(1, 3, 4, 4, device="meta"), ["a hand"])
    assert network.went == ["meta", "looks with 0", "cpu", "meta", "looks with 1", "cpu"]
    with pytest.raises(RuntimeError):
        look(torch.rand(0, 3, 4, 4))
    assert network.went[-1] == "cpu"


def test_of_a_treatment_only_the_second_detector_rests(world, tmp_path):
    settings = config(world, tmp_path)
    found = train.open_detectors(settings, torch.device("meta"), None)
    reward, second = (found[name]([]) for name in ("reward", "second"))
    assert {weight.device.type for weight in reward.parameters()} == {"meta"}
    assert isinstance(second, Resting)
    assert {weight.device.type for weight in second.network.parameters()} == {"cpu"}
