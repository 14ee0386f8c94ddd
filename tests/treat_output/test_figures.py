"""Intervals cover, pairs stay pairs, factors and figures are told apart."""

import numpy as np
import pytest
import torch

from treat import figures


def arm(frequency: float, n: int = 400, seed: int = 0, **more) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {"artifact_frequency": draw.random(n) < frequency, **more}


def test_mean_and_interval_of_a_proportion():
    table = arm(0.3, n=1000)
    summary = figures.summarise(table)
    share = table["artifact_frequency"].mean()
    low, high = summary["interval"]["artifact_frequency"]
    exact = 1.96 * (share * (1 - share) / 1000) ** 0.5  # the normal interval of a proportion
    assert summary["artifact_frequency"] == pytest.approx(share)
    assert low == pytest.approx(share - exact, abs=0.004)
    assert high == pytest.approx(share + exact, abs=0.004)


def test_pairing_narrows_the_interval():
    """The same images with one point less each: certain in pairs, lost in the spread otherwise."""
    draw = np.random.default_rng(0)
    base = {"sharpness": draw.normal(10, 3, 300)}
    lower = {"sharpness": base["sharpness"] - 0.1}
    paired = figures.compare(lower, base)["sharpness"]
    assert paired["difference"] == pytest.approx(-0.1)
    assert paired["interval"] == pytest.approx([-0.1, -0.1])
    shuffled = figures.compare({"sharpness": draw.permutation(lower["sharpness"])}, base)
    assert shuffled["sharpness"]["interval"][0] < -0.3 < 0.1 < shuffled["sharpness"]["interval"][1]


def test_relative_difference():
    base = {"area": np.full(50, 0.2)}
    found = figures.compare({"area": np.full(50, 0.1)}, base)["area"]
    assert found["relative_difference"] == pytest.approx(-0.5)
    assert found["relative_interval"] == pytest.approx([-0.5, -0.5])
    none = figures.compare(base, {"area": np.zeros(50)})["area"]
    assert none["relative_difference"] is None


def test_seeded():
    table = arm(0.4)
    assert figures.summarise(table, seed=1) == figures.summarise(table, seed=1)
    assert figures.summarise(table, seed=1) != figures.summarise(table, seed=2)


def test_a_figure_that_does_not_apply_is_left_out():
    table = {"gaze_match": np.array([1.0, 0.0, np.nan, np.nan])}
    assert figures.summarise(table)["gaze_match"] == 0.5
    pair = figures.compare(table, {"gaze_match": np.array([np.nan, 1.0, 1.0, np.nan])})
    assert pair["gaze_match"]["difference"] == -1.0  # one pair can be read in both


def test_entropy_of_unstated_factors_only():
    table = {
        "free.horizon": np.array([0, 1, 0, 1]),
        "free.mouth": np.array([2, 2, -1, -1]),
        "stated": np.array([0, 1, 2, 3]),
    }
    assert figures.mean_entropy(table) == pytest.approx((1.0 + 0.0) / 2)
    assert figures.mean_entropy({"stated": np.array([0, 1])}) is None


def test_largest_shift_names_the_class():
    base = {"skin": np.array([0, 0, 1, 1]), "sky": np.array([0, 0, 0, 1])}
    arm = {"skin": np.array([0, 0, 0, 1]), "sky": np.array([0, 0, 0, 1])}
    shift = figures.largest_shift(arm, base)
    assert shift is not None and shift["factor"] == "skin"
    assert abs(shift["shift"]) == pytest.approx(0.25)


def test_groups():
    table = arm(0.5, n=4, category=np.array(["hand", "hand", "sign", "sign"]))
    by = figures.summarise(table)["by_category"]
    assert by["hand"]["n"] == 2
    assert by["sign"]["artifact_frequency"] == table["artifact_frequency"][2:].mean()


def test_change_outside_ignores_what_was_marked():
    base = torch.zeros(2, 3, 4, 4)
    images = base.clone()
    images[:, :, :2] = 1.0
    marked = torch.zeros(2, 1, 4, 4)
    marked[0, :, :2] = 1.0
    assert figures.change_outside(images, base, marked).tolist() == [0.0, 0.5]


def test_peak_and_area():
    maps = torch.zeros(2, 1, 4, 4)
    maps[1, 0, 0, 0] = 0.6
    assert figures.peak_flagged(maps).tolist() == [False, True]
    assert figures.map_figures(maps)["artifact_area"].tolist() == [0.0, 1 / 16]


def test_sharpness_falls_under_blur():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    assert (figures.sharpness(blurred) < figures.sharpness(images)).all()
