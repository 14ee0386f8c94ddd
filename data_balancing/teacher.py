"""One shard of unlabelled samples in, one shard of pseudo-labelled ones out: the unit of work.

Whoever spreads the shards out, over processes or machines, calls this function alone.

Legend: b batch, h w pixels, y x cells at the network's stride.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from core.contracts import Images
from core.errors import UserError
from core.images import decode_image, encode_png, from_uint8
from core.shards import ShardStore, ShardWriter
from detector.measure import device
from detector.segformer import SegformerDetector, freeze
from detector.storage import digest, load_detector

AHEAD = 4
"""Batches that are decoded before they are needed."""


class Teacher(NamedTuple):
    """Which detector labels, and how; it travels to every worker."""

    folder: Path
    sha256: str
    """Of its weights: what every record names, and what a worker's must have."""
    batch: int
    device: str
    bf16: bool


class Unlabelled(NamedTuple):
    """One image, as it lies in its shard and decoded."""

    position: int
    content: bytes
    image: UInt8[np.ndarray, "h w 3"]


def label_shard(store: Path, shard: str, out: Path, teacher: Teacher) -> tuple[int, int]:
    """How many samples were labelled, and how many had been; all of a shard or none of it."""
    source = opened_store(store)
    positions = [i for i in source.shards()[shard] if unlabelled(source, i)]
    with ShardWriter(out, max(1, len(positions)), Path(shard).stem) as writer:
        if writer.committed or not positions:
            return 0, len(positions)
        detector = opened(teacher)
        for batch in batches(decoded(source, positions, teacher.batch), teacher.batch):
            masks = labels(detector, batch, teacher)
            for one, mask in zip(batch, masks, strict=True):
                record = source.record(one.position).model_copy(
                    update={"source": "pseudo", "teacher": teacher.sha256}
                )
                said = record.model_dump_json().encode()
                members = {"png": one.content, "mask.png": encode_png(mask), "json": said}
                writer.write_encoded(record.key, members)
    return len(positions), 0


def unlabelled(store: ShardStore, i: int) -> bool:
    """A real photograph needs no mask: nothing in it is an artifact."""
    return not store.has_mask(i) and store.record(i).source != "real"


@functools.lru_cache(maxsize=1)
def opened_store(folder: Path) -> ShardStore:
    """One for all shards of a worker."""
    return ShardStore(folder)


@functools.lru_cache(maxsize=1)
def opened(teacher: Teacher) -> SegformerDetector:
    """One for all shards of a worker; `UserError` where the folder holds another by now."""
    if digest(teacher.folder) != teacher.sha256:
        raise UserError(f"{teacher.folder} is another detector by now: run the command again.")
    return freeze(load_detector(teacher.folder)).to(device(teacher.device))


def decoded(store: ShardStore, positions: list[int], batch: int) -> Iterator[Unlabelled]:
    """In order, some batches ahead of who asks, in threads of their own."""

    def decode(i: int) -> Unlabelled:
        content = store.encoded_image(i)
        image = np.array(decode_image(content, f"{store.folder}:{store.keys[i]}.png"))
        return Unlabelled(i, content, image)

    with ThreadPoolExecutor(2) as pool:
        waiting = iter(positions)
        begun = [pool.submit(decode, i) for i in islice(waiting, AHEAD * batch)]
        while begun:
            yield begun.pop(0).result()
            begun += [pool.submit(decode, i) for i in islice(waiting, 1)]


def batches(images: Iterator[Unlabelled], size: int) -> Iterator[list[Unlabelled]]:
    """Of one size each; where sizes mix, the fullest goes first, so that few images are held."""
    held: dict[tuple[int, ...], list[Unlabelled]] = defaultdict(list)
    for one in images:
        alike = held[one.image.shape]
        alike.append(one)
        if len(alike) == size:
            yield held.pop(one.image.shape)
        elif sum(map(len, held.values())) >= AHEAD * size:
            yield held.pop(max(held, key=lambda shape: len(held[shape])))
    yield from held.values()


@torch.inference_mode()
def labels(
    detector: SegformerDetector, batch: list[Unlabelled], teacher: Teacher
) -> UInt8[np.ndarray, "b y x"]:
    """The map at the network's stride, in 8 bits: (b, h/4, w/4) for the published network."""
    images: Images = from_uint8(np.stack([one.image for one in batch]))
    images = images.to(device(teacher.device))
    with torch.autocast(images.device.type, torch.bfloat16, enabled=teacher.bf16):
        logits = detector.logits(images)
    levels = torch.sigmoid(logits.float()).mul(255).round().to(torch.uint8)
    return levels[:, 0].cpu().numpy()
