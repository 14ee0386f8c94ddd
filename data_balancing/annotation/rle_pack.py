"""thi.ng's rle-pack, 8-bit words in and bytes out, and back.

Most significant bit first: 32 bits count of words, 5 bits word size - 1, four times 4 bits
size - 1; then, until the count is reached, 1 bit is-run, 2 bits which size, that many bits
length - 1, and one word for a run or `length` words.

Legend: n words, r runs.
"""

import numpy as np
from jaxtyping import Int, UInt8

from core.errors import UserError

SIZES = (3, 4, 8, 16)
LONGEST = 1 << SIZES[-1]
WORD = 8
WIDEST = 1 + 2 + SIZES[-1] + WORD
"""Bits of the longest code of a run."""
CHUNK = 1 << 16
"""Runs whose bits are spread at a time: 27 integers each."""

Words = UInt8[np.ndarray, " n"]


def pack(words: Words) -> bytes:
    """The packed bytes; equal neighbours become runs, a word of its own is written as itself."""
    header = len(words)
    for value, bits in ((WORD - 1, 5), *((size - 1, 4) for size in SIZES)):
        header = header << bits | value
    head = np.array([header >> i & 1 for i in range(32 + 5 + 16 - 1, -1, -1)], np.uint8)
    lengths, values = _runs(words)
    parts = [
        _bits_of(lengths[i : i + CHUNK], values[i : i + CHUNK])
        for i in range(0, len(lengths), CHUNK)
    ]
    return np.packbits(np.concatenate([head, *parts])).tobytes()


def unpack(content: bytes, count: int, where: str) -> Words:
    """The `count` words; `UserError` for another count, before anything is allocated for it."""
    bits = _Bits(content, where)
    claimed, word = bits.read(32), bits.read(5) + 1
    if claimed != count or word != WORD:
        raise UserError(
            f"{where}: the RLE holds {claimed} words of {word} bits, {count} of {WORD} belong "
            "there; annotate the images as they were exported."
        )
    sizes = [bits.read(4) + 1 for _ in SIZES]
    words, done = np.zeros(count, np.uint8), 0
    while done < count:
        run, length = bits.read(1), bits.read(sizes[bits.read(2)]) + 1
        if length > count - done:
            raise UserError(f"{where}: the RLE runs over its end; export it again.")
        words[done : done + length] = bits.read(WORD) if run else bits.words(length)
        done += length
    return words


class _Bits:
    """Bytes, read bit by bit."""

    def __init__(self, content: bytes, where: str):
        self.content, self.where, self.place = content, where, 0

    def read(self, number: int) -> int:
        first, last = self._take(number)
        chunk = int.from_bytes(self.content[first:last], "big")
        return chunk >> (last * 8 - self.place) & ((1 << number) - 1)

    def words(self, length: int) -> Words:
        skip = self.place % 8
        first, last = self._take(length * WORD)
        chunk = np.unpackbits(np.frombuffer(self.content[first:last], np.uint8))
        return np.packbits(chunk[skip : skip + length * WORD])

    def _take(self, number: int) -> tuple[int, int]:
        """The bytes that hold the next bits, which are taken."""
        first, self.place = self.place // 8, self.place + number
        last = -(-self.place // 8)
        if last > len(self.content):
            raise UserError(f"{self.where}: the RLE ends early; export it again.")
        return first, last


def _runs(words: Words) -> tuple[Int[np.ndarray, " r"], UInt8[np.ndarray, " r"]]:
    """Lengths of at most `LONGEST` and the word of each run."""
    if not len(words):
        return np.zeros(0, np.int64), words
    starts = np.append(0, np.flatnonzero(words[1:] != words[:-1]) + 1)
    whole = np.diff(starts, append=len(words))
    pieces = -(-whole // LONGEST)
    lengths = np.full(pieces.sum(), LONGEST)
    lengths[np.cumsum(pieces) - 1] = whole - (pieces - 1) * LONGEST
    return lengths, np.repeat(words[starts], pieces)


def _bits_of(lengths: Int[np.ndarray, " r"], values: UInt8[np.ndarray, " r"]) -> Words:
    """The codes of runs, one after the other, a bit an item."""
    which = np.searchsorted([1 << size for size in SIZES], lengths)
    sizes = np.array(SIZES)[which]
    codes = (lengths > 1) << 2 | which
    codes = (codes << sizes | (lengths - 1)) << WORD | values
    places = np.arange(WIDEST - 1, -1, -1)
    spread = (codes[:, None] >> places & 1).astype(np.uint8)
    return spread[places < (3 + sizes + WORD)[:, None]]
