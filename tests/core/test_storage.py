"""A file's fingerprint: its size and all of it, or of a large one blocks all over."""

import pytest

from core.storage import BLOCK, BLOCKS, fingerprint

WHOLE = BLOCKS * BLOCK


def changed(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("size", [0, 1, WHOLE, WHOLE + 1, 3 * WHOLE + 7])
def test_size_first_and_last_byte_count(tmp_path, size):
    content = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    contents = [content[:size], content[: size + 1]]
    contents += [changed(content[:size], place) for place in {0, size // 2, size - 1} if size]
    found = []
    for i, one in enumerate(contents):
        (tmp_path / str(i)).write_bytes(one)
        found.append(fingerprint(tmp_path / str(i)))
    distinct = len(contents) if size <= WHOLE + 1 else len(contents) - 1  # its middle is not read
    assert len(set(found)) == distinct
    (tmp_path / "copy").write_bytes(contents[0])
    assert fingerprint(tmp_path / "copy") == found[0]


def test_another_large_file_of_the_same_size_is_told_apart(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        part = bytes([value]) * (2 * BLOCK)  # no more than one part of many
        (tmp_path / name).write_bytes(bytes(WHOLE // 2) + part + bytes(WHOLE // 2))
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
