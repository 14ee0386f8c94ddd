"""Our brushes against those of Label Studio's own converter, both ways, soft masks included."""

import numpy as np
import pytest

from data_balancing.annotation import label_studio
from data_balancing.annotation.rle_pack import pack, unpack
from tests.system.foreign import call, masks

pytestmark = pytest.mark.system
MASKS = masks(soft=True)
WORDS = [np.random.default_rng(i).integers(0, 1 + i % 4, 1 + 7 * i) for i in range(20)]


@pytest.fixture(scope="module")
def theirs():
    return call(
        "label_studio",
        {
            "masks": [mask.tolist() for mask in MASKS],
            "brushes": [label_studio.encode_mask(mask) for mask in MASKS],
            "words": [words.tolist() for words in WORDS],
        },
    )


def test_they_read_what_we_write(theirs):
    assert len(theirs["decoded"]) == len(MASKS)
    for mask, decoded in zip(MASKS, theirs["decoded"], strict=True):
        assert np.array_equal(np.array(decoded).reshape(mask.shape), mask)


def test_we_read_what_they_write(theirs):
    for mask, rle in zip(MASKS, theirs["encoded"], strict=True):
        assert np.array_equal(label_studio.decode_mask(rle, mask.shape, "theirs"), mask)


def test_the_bytes_are_the_same(theirs):
    """But for one zero byte that they add where the last byte is full."""
    for mask, rle in zip(MASKS, theirs["encoded"], strict=True):
        ours = label_studio.encode_mask(mask)
        assert rle in (ours, [*ours, 0])


def test_words_of_any_number(theirs):
    for words, packed in zip(WORDS, theirs["packed"], strict=True):
        assert bytes(packed).removeprefix(pack(words.astype(np.uint8))) in (b"", b"\0")
        assert np.array_equal(unpack(bytes(packed), len(words), "theirs"), words)
