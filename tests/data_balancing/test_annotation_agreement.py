"""Figures of agreement that were worked out by hand."""

import numpy as np
import pytest

from data_balancing.agreement import agreement, soft_label


def mask(*levels):
    return np.array(levels, np.uint8).reshape(2, -1)


def test_the_soft_label_is_the_mean_rounded():
    masks = [mask(0, 255, 255, 1), mask(0, 255, 0, 2), mask(0, 255, 0, 2)]
    assert soft_label(masks[:2]).ravel().tolist() == [0, 255, 128, 2]  # 127.5 and 1.5 go up
    assert soft_label(masks).ravel().tolist() == [0, 255, 85, 2]  # 1.67


def test_two_annotators_by_hand():
    """One image where of 4 pixels 1 is marked by both and 1 by ann alone; one that both find empty.

    IoU 1/2 and 1. Pooled: 8 pixels, 7 agree; by chance (6*7 + 2*1) / 64 = 11/16;
    kappa = (14/16 - 11/16) / (5/16) = 3/5.
    """
    first = {"ann": mask(255, 128, 127, 0), "bo": mask(255, 127, 0, 0)}
    found = agreement([first, {"ann": mask(0, 0, 0, 0), "bo": mask(0, 0, 0, 0)}])
    assert found.iou == pytest.approx(3 / 4) and found.kappa == pytest.approx(3 / 5)
    assert found.images == found.images_with_several == 2
    assert [pair.annotators for pair in found.pairs] == [("ann", "bo")]


def test_three_annotators_by_hand():
    """ann = bo, and carl the opposite: IoU 1, 0, 0; kappa 1, -1, -1; overall their means."""
    one, other = mask(255, 255, 0, 0), mask(0, 0, 255, 255)
    found = agreement([{"carl": other, "ann": one, "bo": one}])
    assert [pair.kappa for pair in found.pairs] == [1, -1, -1]
    assert [pair.iou for pair in found.pairs] == [1, 0, 0]
    assert found.iou == pytest.approx(1 / 3) and found.kappa == pytest.approx(-1 / 3)


def test_nothing_to_compare():
    found = agreement([{"ann": mask(1, 2, 3, 4)}])
    assert (found.images, found.images_with_several) == (1, 0)
    assert found.iou is None and found.kappa is None and found.pairs == []


def test_both_find_nothing_anywhere():
    found = agreement([{"ann": mask(0, 0, 0, 0), "bo": mask(0, 0, 0, 0)}])
    assert (found.iou, found.kappa) == (1, 1)
