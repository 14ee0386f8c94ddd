"""What a split keeps together: prompts, and images that look alike."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.samples import Record
from detector.data import split_by_group
from detector.groups import NEAR, Groups, group_texts, near_pairs


def record(key: str, prompt: str = "", phash: int | None = None) -> Record:
    looks = "" if phash is None else f"{phash:016x}"
    return Record(key=key, source="human", prompt=prompt, phash=looks)


def sizes(records: list[Record]) -> list[int]:
    groups = Groups()
    for one in records:
        groups.add(one)
    return groups.sizes().tolist()


def flipped(word: int, *bits: int) -> int:
    for bit in bits:
        word ^= 1 << int(bit)
    return word


def test_prompts_and_near_duplicates_are_tied():
    a, b = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    records = [
        record("1", "A cat", a),
        record("2", "a cat ", b),
        record("3", "a dog", flipped(b, 3, 17, 63)),  # three bits from the second cat
        record("4", "a hen", flipped(b, 0, 1, 2, 3)),  # four bits: another image
        record("5"),
        record("6", "", a),  # a copy of the first
        record("7", "a fox", None),
    ]
    texts = group_texts(records)
    assert texts == ["6", "6", "6", "a hen", "5", "6", "a fox"]
    assert sorted(sizes(records)) == [1, 1, 1, 4] and len(sizes([])) == 0


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_pairs_join_what_is_near_and_nothing_else(words, data):
    for _ in range(data.draw(st.integers(0, 8))):
        if words:
            bits = data.draw(st.lists(st.integers(0, 63), max_size=5))
            words.append(flipped(data.draw(st.sampled_from(words)), *bits))
    hashes = np.array(words, np.uint64)
    found = components(len(words), near_pairs(hashes))
    near = [
        (i, j)
        for i in range(len(words))
        for j in range(i)
        if (words[i] ^ words[j]).bit_count() <= NEAR
    ]
    assert found == components(len(words), near)


def components(n, pairs) -> list[int]:
    label = list(range(n))
    for i, j in pairs:
        low, high = sorted((label[i], label[j]))
        label = [low if one == high else one for one in label]
    return label


def test_no_group_stands_on_both_sides():
    draw = np.random.default_rng(0)
    words = [int(w) for w in draw.integers(0, 2**63, 400)]
    records = [
        record(f"{i}", f"prompt {i % 300}", flipped(words[i % 350], *draw.integers(0, 64, i % 3)))
        for i in range(1500)
    ]
    train, valid = split_by_group(records, 0.2, seed=3)
    assert sorted([*train, *valid]) == list(range(1500)) and min(len(train), len(valid)) > 50
    texts = group_texts(records)
    assert sorted(sizes(records)) == sorted(Counter(texts).values())
    assert not {texts[i] for i in train} & {texts[i] for i in valid}
    assert not {records[i].prompt for i in train} & {records[i].prompt for i in valid}
    nearest = min(
        (int(records[i].phash, 16) ^ int(records[j].phash, 16)).bit_count()
        for i in train
        for j in valid
    )
    assert nearest > NEAR


def test_records_without_hashes_are_split_as_by_their_prompts_alone():
    records = [record(f"{i}", f"prompt {i % 7}") for i in range(70)]
    assert group_texts(records) == [r.prompt for r in records]
