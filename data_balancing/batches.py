"""Positions of a store in, decoded images in batches of one size out, read ahead of who asks.

Legend: h w pixels.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from core.image_files import decode_image, flatten
from core.shards import ShardStore

AHEAD = 4
"""Batches that are decoded before they are needed."""


class Decoded(NamedTuple):
    """One image, as it lies in its shard and decoded."""

    position: int
    kind: str
    """Of the member that it is: png, jpg or jpeg."""
    content: bytes
    image: UInt8[np.ndarray, "h w 3"]


def decoded(store: ShardStore, positions: Sequence[int], size: int) -> Iterator[Decoded]:
    """In order, some batches ahead of who asks, in threads of their own."""

    def decode(i: int) -> Decoded:
        content, kind = store.encoded_image(i), store.image_kind(i)
        picture = decode_image(content, f"{store.folder}:{store.keys[i]}.{kind}")
        return Decoded(i, kind, content, np.array(flatten(picture)))

    with ThreadPoolExecutor(2) as pool:
        waiting = iter(positions)
        begun = [pool.submit(decode, i) for i in islice(waiting, AHEAD * size)]
        while begun:
            yield begun.pop(0).result()
            begun += [pool.submit(decode, i) for i in islice(waiting, 1)]


def batches(images: Iterator[Decoded], size: int) -> Iterator[list[Decoded]]:
    """Of one size each; where sizes mix, the fullest goes first, so that few images are held."""
    held: dict[tuple[int, ...], list[Decoded]] = defaultdict(list)
    for one in images:
        alike = held[one.image.shape]
        alike.append(one)
        if len(alike) == size:
            yield held.pop(one.image.shape)
        elif sum(map(len, held.values())) >= AHEAD * size:
            yield held.pop(max(held, key=lambda shape: len(held[shape])))
    yield from held.values()
