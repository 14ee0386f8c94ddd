"""Run lengths and packed bytes: exact both ways, as their makers write them, never trusted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as theirs

from core.errors import UserError
from data_balancing.annotation import coco, cvat, label_studio
from data_balancing.annotation.outlines import box_points, polygon_mask
from data_balancing.annotation.rle_pack import pack, unpack
from tests.data_balancing.annotations import SOFT

# From the tests of label-studio-sdk: single words as themselves, runs from two on.
DOCUMENTED = [1, 1, 1, 1, 2, 3, 5, 6, 7, 8, 4, 4, 4, 4, 4, 4, 4, 4]
DOCUMENTED_BYTES = bytes(
    [0, 0, 0, 18, 57, 27, 252, 96, 32, 1, 0, 6, 0, 40, 0, 192, 3, 128, 17, 56, 32]
)
# By @thi.ng/rle-pack 3.2.1, with which the tool's browser side writes: ALPHA with a colour below
# it (words that differ are written several at a time), and ALPHA in all four channels.
ALPHA = np.array([[0, 0, 0, 0], [0, 128, 255, 0], [7, 7, 7, 9]], np.uint8)
IN_COLOUR = [0, 0, 0, 48, 57, 27, 254, 19, 0, 31, 252, 40, 82, 3, 252, 40, 83, 254, 48, 3, 255]
IN_COLOUR += [225, 66, 128, 255, 225, 66, 128, 255, 225, 66, 128, 255, 225, 66, 129, 32]
IN_GRAY = [0, 0, 0, 48, 57, 27, 254, 19, 0, 142, 2, 63, 248, 192, 45, 131, 198, 18]


def test_the_documented_bytes():
    words = np.array(DOCUMENTED, np.uint8)
    assert pack(words) == DOCUMENTED_BYTES
    assert np.array_equal(unpack(DOCUMENTED_BYTES, 18, "x"), words)


def test_the_bytes_of_the_browser():
    assert np.array_equal(label_studio.decode_mask(IN_COLOUR, ALPHA.shape, "x"), ALPHA)
    assert np.array_equal(label_studio.decode_mask(IN_GRAY, ALPHA.shape, "x"), ALPHA)
    assert label_studio.encode_mask(ALPHA) == IN_GRAY


@given(SOFT)
def test_a_brush_is_exact(mask):
    assert np.array_equal(
        label_studio.decode_mask(label_studio.encode_mask(mask), mask.shape, ""), mask
    )


@pytest.mark.parametrize("length", [8, 9, 16, 17, 256, 257, 65536, 65537, 131072, 200000])
def test_runs_at_the_edges_of_their_sizes(length):
    words = np.concatenate([[3], np.full(length, 9), [3]]).astype(np.uint8)
    assert np.array_equal(unpack(pack(words), len(words), "x"), words)


@given(SOFT)
def test_points_of_cvat_keep_what_reaches_half(mask):
    points = cvat.encode_points(mask)
    assert np.array_equal(cvat.decode_points(points, mask.shape, ""), (mask >= 128) * np.uint8(255))


def test_points_of_cvat_begin_with_what_is_not_marked():
    mask = np.zeros((4, 5), np.uint8)
    mask[1, 2:4] = mask[2, 1] = 255
    assert cvat.encode_points(mask) == [1, 3, 2, 1, 1, 3, 2]  # .XX X.. from (1, 1) to (3, 2)
    assert cvat.encode_points(mask * 0) == [1, 0, 0, 0, 0]


@given(SOFT)
def test_run_lengths_of_coco_are_those_of_its_library(mask):
    marked = (mask >= 128) * np.uint8(255)
    found = coco.encode_mask(mask)
    assert np.array_equal(coco.decode_runs(found["counts"], mask.shape, ""), marked)
    columns = marked.T.ravel() > 0
    lengths = np.diff(
        [0, *(np.flatnonzero(columns[1:] != columns[:-1]) + 1), columns.size]
    ).tolist()
    lengths = [0, *lengths] if columns[0] else lengths
    assert np.array_equal(coco.decode_runs(lengths, mask.shape, ""), marked)
    assert np.array_equal(theirs.decode(found) * 255, marked)


def test_polygons_fill_the_pixels_whose_middle_they_hold():
    square = polygon_mask([(1, 1), (4, 1), (4, 3), (1, 3)], (5, 6), "x")
    assert square[1:3, 1:4].all() and square.sum() == 6 * 255
    assert np.array_equal(polygon_mask(box_points((1, 1), (4, 3)), (5, 6), "x"), square)
    turned = polygon_mask(box_points((1, 1), (4, 3), 180), (5, 6), "x")
    assert np.array_equal(turned, square)


HUGE = (10**6, 10**6)  # pixels that nobody may allocate: 10^12


@pytest.mark.parametrize(
    "read",
    [
        lambda: unpack(b"", 4, "x"),
        lambda: unpack(DOCUMENTED_BYTES, 20, "x"),
        lambda: unpack(DOCUMENTED_BYTES[:-3], 18, "x"),
        lambda: unpack(bytes([0, 0, 0, 17]) + DOCUMENTED_BYTES[4:], 17, "x"),
        lambda: unpack(b"\xff" * 40, 18, "x"),
        lambda: label_studio.decode_mask(IN_GRAY, HUGE, "x"),
        lambda: label_studio.decode_mask([256, -1], (1, 1), "x"),
        lambda: cvat.decode_points([10**12, 0, 0, 3, 3], (4, 4), "x"),
        lambda: cvat.decode_points([-1, 17, 0, 0, 3, 3], (4, 4), "x"),
        lambda: cvat.decode_points([16, 0, 0, 4, 3], (4, 4), "x"),
        lambda: cvat.decode_points([0.5, 15.5, 0, 0, 3, 3], (4, 4), "x"),
        lambda: cvat.decode_points([0, 0, 0, 0], (4, 4), "x"),
        lambda: coco.decode_runs([10**12], (4, 4), "x"),
        lambda: coco.decode_runs("o" * 1000, (4, 4), "x"),
        lambda: coco.decode_runs("P" * 3, (4, 4), "x"),
        lambda: coco.decode_runs("é", (4, 4), "x"),
        lambda: polygon_mask([(0, 0), (4, 4)], (4, 4), "x"),
        lambda: polygon_mask([(0, 0), (1e9, 0), (0, 1e9)], (4, 4), "x"),
        lambda: polygon_mask([(0, 0), (float("nan"), 0), (0, 1)], (4, 4), "x"),
        lambda: polygon_mask([(0, 0), (4, 4)] * 5000, (4, 4), "x"),
    ],
)
def test_what_does_not_fit_is_refused(read):
    with pytest.raises(UserError, match=r"[;,:]"):
        read()


@given(st.binary(max_size=60), st.integers(1, 40))
def test_any_bytes_are_words_or_refused(content, count):
    header = count.to_bytes(4, "big") + DOCUMENTED_BYTES[4:6]
    try:
        assert len(unpack(header + content, count, "x")) == count
    except UserError:
        pass


@given(st.text(alphabet=[chr(48 + i) for i in range(64)], max_size=30))
def test_any_text_is_run_lengths_or_refused(text):
    try:
        assert coco.decode_runs(text, (3, 5), "x").shape == (3, 5)
    except UserError:
        pass
