"""Figures against hand computation, and properties that hold for all maps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector import metrics


def maps(*values):
    """A (1, 1, 1, n) map."""
    return torch.tensor(values).view(1, 1, 1, -1)


def rows(*images):
    return torch.tensor(images).view(len(images), 1, 1, -1)


def test_reliability():
    target, prediction = rows([0.0, 1.0, 0.0, 0.0]), rows([0.01, 0.9, 0.91, 0.95])
    found = metrics.reliability(prediction, target)
    assert [(one["pixels"], round(one["high"], 3)) for one in found] == [
        (1, 0.067), (2, 0.933), (1, 1.0),
    ]  # fmt: skip
    assert found[0]["predicted"] == pytest.approx(0.01) and found[0]["labelled"] == 0
    found = metrics.reliability(rows([0.62, 0.64]), rows([1.0, 0.0]))
    assert found[0]["predicted"] == pytest.approx(0.63) and found[0]["labelled"] == 0.5
    random = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    gaps = metrics.reliability(random, random.square())
    error = sum(one["pixels"] * abs(one["predicted"] - one["labelled"]) for one in gaps) / 162
    assert error == pytest.approx(metrics.calibration_error(random, random.square()))


def test_mse():
    assert metrics.mse(maps(0.0, 0.5), maps(1.0, 0.5)) == pytest.approx(0.5)


def test_the_two_halves_of_the_divergence():
    prediction, target = maps(0.25, 0.5), maps(0.5, 0.5)
    assert metrics.kl_fn(prediction, target) == pytest.approx(0.5 * math.log(2) / 2)
    assert metrics.kl_fp(prediction, target) == pytest.approx(0.5 * math.log(0.5 / 0.75) / 2)


def test_a_missed_artifact_costs_kl_fn_and_a_false_alarm_kl_fp():
    missed = maps(0.0), maps(1.0)
    assert metrics.kl_fn(*missed) == pytest.approx(-math.log(1e-6), rel=1e-4)
    assert metrics.kl_fp(*missed) == pytest.approx(0, abs=1e-4)
    alarm = maps(1.0), maps(0.0)
    assert metrics.kl_fp(*alarm) == pytest.approx(-math.log(1e-6), rel=1e-4)


def test_saliency_divergence():
    assert metrics.saliency_kld(maps(0.1, 0.1), maps(0.8, 0.0)) == pytest.approx(
        math.log(2), rel=1e-3
    )
    assert math.isnan(metrics.saliency_kld(maps(0.1, 0.1), maps(0.0, 0.0)))


def test_average_precision():
    # thresholds .9, .8, .7: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
    assert metrics.pixel_ap(maps(0.9, 0.8, 0.7, 0.1), maps(1.0, 0.0, 1.0, 0.0)) == pytest.approx(
        0.5 * 1 + 0.5 * 2 / 3
    )
    assert metrics.pixel_ap(maps(0.5, 0.5), maps(1.0, 0.0)) == pytest.approx(0.5)  # one tie
    assert math.isnan(metrics.pixel_ap(maps(0.5), maps(0.0)))


def test_auroc():
    scores, positive = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True])
    assert metrics.auroc(scores, positive) == pytest.approx(0.5)
    tied = torch.full((4,), 0.3)
    assert metrics.auroc(tied, torch.tensor([True, False, False, True])) == pytest.approx(0.5)
    assert math.isnan(metrics.auroc(tied, torch.zeros(4, dtype=torch.bool)))


def test_image_auroc_reads_the_maximum():
    assert metrics.image_auroc(rows([0.1, 0.6], [0.2, 0.2]), rows([0.0, 1.0], [0.0, 0.0])) == 1


def test_iou_and_its_tolerance():
    prediction, target = maps(0.0, 1.0, 0.0, 0.0, 1.0), maps(1.0, 0.0, 0.0, 0.0, 0.0)
    assert metrics.iou(prediction, target) == 0
    # the neighbour counts on both sides, the far pixel is one false alarm: 1 / (1 + 1)
    assert metrics.iou(prediction, target, tolerance=1) == pytest.approx(0.5)
    assert metrics.iou(maps(1.0, 1.0, 0.0), maps(1.0, 0.0, 0.0)) == pytest.approx(0.5)
    assert math.isnan(metrics.iou(maps(0.0), maps(0.0)))


def test_tolerance_does_not_wrap_or_cross_images():
    prediction, target = rows([0.0, 0.0, 1.0], [0.0, 0.0, 0.0]), rows([0.0] * 3, [1.0, 0.0, 0.0])
    assert metrics.iou(prediction, target, tolerance=1) == 0


def test_f1():
    assert metrics.f1(maps(0.9, 0.9, 0.1), maps(1.0, 0.0, 1.0)) == pytest.approx(0.5)


def test_calibration():
    assert metrics.calibration_error(maps(0.3, 0.3, 0.3, 0.3), maps(1.0, 0.0, 0.0, 0.0)) == (
        pytest.approx(0.05)
    )
    assert metrics.calibration_error(maps(1.0), maps(1.0)) == 0


def test_image_rates():
    prediction = rows([0.6, 0.0], [0.4, 0.0], [0.9, 0.0], [0.1, 0.0])
    target = rows([0.0, 0.0], [0.0, 0.2], [1.0, 0.0], [0.0, 0.0])
    assert metrics.false_positive_images(prediction, target) == pytest.approx(1 / 3)
    assert metrics.artifact_frequency(prediction) == pytest.approx(0.5)


random_maps = st.integers(0, 2**31).map(
    lambda seed: torch.rand(2, 2, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
)


@settings(max_examples=15, deadline=None)
@given(random_maps)
def test_properties(drawn):
    prediction, target = drawn
    figures = metrics.all_metrics(prediction, target)
    assert all(0 <= figures[name] <= 1 for name in ("mse", "pixel_ap", "iou", "iou_1px", "f1"))
    assert figures["iou"] <= figures["iou_1px"] + 1e-9
    assert figures["kl_fn"] + figures["kl_fp"] >= 0  # a divergence; its halves may be negative
    assert figures["f1"] == pytest.approx(2 * figures["iou"] / (1 + figures["iou"]))


@settings(max_examples=15, deadline=None)
@given(random_maps)
def test_the_truth_is_the_best_prediction(drawn):
    _, target = drawn
    best = metrics.all_metrics(target, target)
    assert best["mse"] == best["kl_fn"] == best["kl_fp"] == 0
    assert [best[name] for name in ("pixel_ap", "iou", "f1")] == pytest.approx([1, 1, 1])


@settings(max_examples=15, deadline=None)
@given(random_maps)
def test_ranking_figures_ignore_monotone_changes(drawn):
    prediction, target = drawn
    assert metrics.pixel_ap(prediction, target) == pytest.approx(
        metrics.pixel_ap(prediction.double() ** 3, target)
    )
