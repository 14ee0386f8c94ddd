"""The exported step is the second detector's choice, of those that still know real images."""

import json

import pytest
import torch

from tests.treat.setting import build, config, losses
from treat import setup, train
from treat.best import Best
from treat.watch import Resting, scores, sharpness


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


def each_of(best, *rows):
    """What the second detector says of each image at steps 10, 20, ..."""
    means = [{"second_mean": sum(row) / len(row)} for row in rows]
    return [
        best.look(10 * i, mean, each=row)
        for i, (mean, row) in enumerate(zip(means, rows, strict=True), 1)
    ]


LOW, CHANCE = 4 * [0.1, 0.3, 0.2, 0.2], 4 * [0.3, 0.1, 0.3, 0.2]
WORSE = 4 * [0.2, 0.4, 0.3, 0.31]


def test_a_later_step_is_taken_unless_it_is_worse_beyond_chance():
    best = Best(rise=0.2)
    assert each_of(best, LOW, CHANCE) == [True, True]
    assert (best.step, best.lowest, best.since) == (20, pytest.approx(0.2), 1)
    assert best.score == pytest.approx(0.225)
    best = Best(rise=0.2)
    assert each_of(best, LOW, WORSE) == [True, False] and best.step == 10


def test_steps_are_held_against_the_lowest_score_not_against_the_last_taken():
    up, further = 4 * [0.14, 0.28, 0.24, 0.18], 4 * [0.12, 0.32, 0.22, 0.22]
    assert each_of(Best(rise=0.2), LOW, up, further) == [True, True, False]
    assert each_of(Best(rise=0.2), up, further) == [True, True]  # control


def test_what_chance_allows_must_be_sound_and_hold_real_images():
    best, later = Best(rise=0.2), {"second_mean": 0.225}
    best.look(0, {"second_mean": 1.0, "watch_offline": 1.0})
    each_of(best, LOW)
    assert not best.look(20, later, sound=False, each=CHANCE)
    assert not best.look(20, {**later, "watch_offline": 1.3}, each=CHANCE)
    assert not best.look(20, later, each=CHANCE[:-1])  # of other images
    assert best.look(20, later, each=CHANCE)  # control


def test_few_images_and_none_that_is_finite_leave_the_lowest():
    assert each_of(Best(rise=0.2), LOW[:12], CHANCE[:12]) == [True, False]
    for strange in (float("nan"), float("inf")):
        assert each_of(Best(rise=0.2), LOW, [strange, *LOW[1:]]) == [True, False]


def test_state_is_json_and_comes_back():
    for pairs in ([], [(0.1, 1.0)], [(0.1, 1.0), (0.5, 1.0)]):
        for more in ([], [LOW, CHANCE]):
            best, again = Best(rise=0.2), Best(rise=0.2)
            looks(best, *pairs)
            each_of(best, *more)
            again.restore(json.loads(json.dumps(best.state(), allow_nan=False)))
            assert again == best
    older = Best(rise=0.2)
    older.restore({"step": 10, "score": 0.5, "base_offline": None, "since": 0})
    assert not older.look(20, {"second_mean": 0.5}, each=LOW)  # an older checkpoint has no more
    assert older.look(30, {"second_mean": 0.4}, each=LOW)


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
    found = setup.open_detectors(settings, torch.device("meta"), None)
    reward, second = (found[name]([]) for name in ("reward", "second"))
    assert {weight.device.type for weight in reward.parameters()} == {"meta"}
    assert isinstance(second, Resting)
    assert {weight.device.type for weight in second.network.parameters()} == {"cpu"}
