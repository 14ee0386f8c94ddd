"""One shard of unlabelled samples in, one shard of pseudo-labelled ones out: the unit of work.

Whoever spreads the shards out, over processes or machines, calls this function alone.

Legend: b batch, h w pixels, y x cells at the network's stride.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from core.contracts import Images
from core.errors import UserError
from core.image_files import encode_png
from core.images import from_uint8
from core.samples import Record
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from data_balancing.batches import Decoded, batches, decoded
from detector.measure import device
from detector.segformer import SegformerDetector, freeze
from detector.storage import digest, load_detector


class Teacher(NamedTuple):
    """Which detector labels, and how; it travels to every worker."""

    folder: Path
    sha256: str
    """Of its weights: what every record names, and what a worker's must have."""
    batch: int
    device: str
    bf16: bool
    left_out: frozenset[str] = frozenset()
    """Keys that it does not label, for people do."""


def label_shard(store: Path, shard: str, out: Path, teacher: Teacher) -> tuple[int, int]:
    """How many samples were labelled, and how many had been; all of a shard or none of it."""
    source = opened_store(store)
    own = [i for i in source.shards()[shard] if source.keys[i] not in teacher.left_out]
    records = unlabelled(source, own)
    positions = list(records)
    with ShardWriter(out, max(1, len(positions)), Path(shard).stem) as writer:
        if writer.committed or not positions:
            return 0, len(positions)
        detector = opened(teacher)
        for batch in batches(decoded(source, positions, teacher.batch), teacher.batch):
            masks = labels(detector, batch, teacher)
            for one, mask in zip(batch, masks, strict=True):
                update = {"source": "pseudo", "teacher": teacher.sha256}
                record = records[one.position].model_copy(update=update)
                said = record.model_dump_json().encode()
                members = {one.kind: one.content, "mask.png": encode_png(mask), "json": said}
                writer.write_encoded(record.key, members)
    return len(positions), 0


def unlabelled(store: ShardStore, positions: Sequence[int]) -> dict[int, Record]:
    """Which of these need a mask: a real photograph needs none, nothing in it is an artifact."""
    records = {i: store.record(i) for i in positions if not store.has_mask(i)}
    return {i: record for i, record in records.items() if record.source != "real"}


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


@torch.inference_mode()
def labels(
    detector: SegformerDetector, batch: list[Decoded], teacher: Teacher
) -> UInt8[np.ndarray, "b y x"]:
    """The map at the network's stride, in 8 bits: (b, h/4, w/4) for the published network."""
    images: Images = from_uint8(np.stack([one.image for one in batch]))
    images = images.to(device(teacher.device))
    with torch.autocast(images.device.type, torch.bfloat16, enabled=teacher.bf16):
        logits = detector.logits(images)
    levels = torch.sigmoid(logits.float()).mul(255).round().to(torch.uint8)
    return levels[:, 0].cpu().numpy()
