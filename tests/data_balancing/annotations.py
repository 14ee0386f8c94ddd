"""What the tests of annotations share: cases, strategies for masks, and damage."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from data_balancing.annotation.cases import Case

LEVELS = st.sampled_from([0, 1, 127, 128, 254, 255]) | st.integers(0, 255)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 40))
SOFT = SHAPES.flatmap(
    lambda shape: st.one_of(
        arrays(np.uint8, shape, elements=LEVELS),
        arrays(np.uint8, shape, elements=st.sampled_from([0, 255])),
        st.sampled_from([0, 128, 255]).map(lambda level: np.full(shape, level, np.uint8)),
    )
)
"""Random, two-valued, empty and full masks, single rows and pixels among them."""


def random_case(i, size=(6, 9)):
    draw = np.random.default_rng(i)
    image = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
    guess = np.zeros(size, np.uint8)
    guess[1:4, i : i + 3] = draw.integers(1, 256, guess[1:4, i : i + 3].shape)
    return Case(f"case-{i}", image, guess, f"a hand, no. {i}")


CASES = [random_case(0), random_case(1, (1, 13)), random_case(2)._replace(guess=None)]
CASES[1].guess[:] = 0
SIZES = {case.key: case.image.shape[:2] for case in CASES}
GUESSES = {
    c.key: np.zeros(c.image.shape[:2], np.uint8) if c.guess is None else c.guess for c in CASES
}


def store_of(folder, cases=CASES):
    with ShardWriter(folder, 2) as writer:
        for i, case in enumerate(cases):
            record = Record(key=case.key, source="hard", prompt=case.prompt, teacher="t", seed=i)
            writer.write(Sample(case.key, case.image, case.guess, record))
    return folder


def damaged(content, draw):
    """Bytes with some of them changed, cut out or doubled."""
    content = bytearray(content)
    for _ in range(draw.integers(1, 6)):
        place = int(draw.integers(0, len(content)))
        kind = draw.integers(0, 4)
        if kind == 0:
            content[place] = draw.integers(0, 256)
        elif kind == 1:
            del content[place : place + int(draw.integers(1, 20))]
        elif kind == 2:
            content[place:place] = content[place : place + int(draw.integers(1, 20))]
        else:
            content[place] = b"0123456789"[draw.integers(0, 10)]
        content = content or bytearray(b"0")
    return bytes(content)
