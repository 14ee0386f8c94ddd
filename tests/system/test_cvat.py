"""Our mask points against those of CVAT's own package, both ways; a soft mask is cut at half."""

import numpy as np
import pytest

from data_balancing.annotation import cvat
from tests.system.foreign import call, masks

pytestmark = pytest.mark.system
SOFT, MASKS = masks(soft=True), masks(soft=False)


@pytest.fixture(scope="module")
def theirs():
    return call(
        "cvat",
        {
            "masks": [(mask > 0).tolist() for mask in MASKS],
            "points": [[cvat.encode_points(mask), *mask.shape] for mask in SOFT],
        },
    )


def test_they_read_what_we_write(theirs):
    assert len(theirs["decoded"]) == len(MASKS)
    for mask, decoded in zip(MASKS, theirs["decoded"], strict=True):
        assert np.array_equal(np.array(decoded) * 255, mask)


def test_we_read_what_they_write(theirs):
    for mask, points in zip(MASKS, theirs["encoded"], strict=True):
        assert np.array_equal(cvat.decode_points(points, mask.shape, "theirs"), mask)


def test_the_points_are_the_same(theirs):
    assert theirs["encoded"] == [cvat.encode_points(mask) for mask in SOFT]
