"""Samples of stores and folders (`detector.sources`) in, labelled ones and training batches out.

Legend: b batch, h w pixels, n samples.
"""

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.contracts import ArtifactMap, Images
from core.errors import UserError
from core.images import from_uint8
from core.order import batch_indices, epoch_order
from core.samples import Record, Sample
from core.seeds import generator, mix
from detector.alignment import LABELLED
from detector.augment import augment
from detector.augmentation import Augmentation
from detector.groups import group_texts
from detector.maps import enlarged_by_logits
from detector.parallel import WHOLE, Share
from detector.quotas import Quotas
from detector.sources import open_data

T = TypeVar("T")

ORDER, AUGMENT, SPLIT, SPREAD, REFERENCES = 101, 102, 103, 104, 107
"""What a draw is for: keeps the streams of one seed apart."""
LOOKED_AT = 500
"""Images whose sizes are compared before a training begins."""
MEMORY = 2 << 30
"""Bytes of decoded samples that are held; a larger set is read again each time."""


def open_labelled(
    paths: Sequence[Path], memory: int = MEMORY
) -> tuple[Sequence[Sample], Sequence[Record]]:
    """Samples and records of stores and folders, decoded once where they fit.

    What is not labelled is passed over. Raises `UserError` where nothing is.
    """
    return hold(*open_data(paths), memory)


def hold(
    samples: Sequence[Sample], records: Sequence[Record], memory: int = MEMORY
) -> tuple[Sequence[Sample], Sequence[Record]]:
    """The same, decoded once where they fit."""
    pixels = samples[0].image.shape[0] * samples[0].image.shape[1] * len(samples)
    if 4 * pixels > memory:
        return samples, records
    records = list(records)
    if 7 * pixels > memory and any(record.referenced for record in records):
        return samples, records
    return [labelled(sample) for sample in samples], records


def labelled(sample: Sample) -> Sample:
    """The sample with a mask: zero for a real photograph; `UserError` for an unlabelled one."""
    if sample.mask is not None:
        return sample
    if sample.record.source != "real":
        raise UserError(
            f"sample {sample.key} ({sample.record.source}) has no mask; label it, or leave it out."
        )
    return replace(sample, mask=np.zeros(sample.image.shape[:2], np.uint8))


def split_by_group(
    records: Iterable[Record], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Positions to train on and to validate on; no prompt and no near-duplicate is on both sides.

    About `share` of the groups validate (each decides by a hash of its text, so that adding
    samples moves no other one, unless they tie two groups together).
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for i, text in enumerate(group_texts(records)):
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        sides[mix(SPLIT, seed, number) / 2**63 < share].append(i)
    return sides


def spread(n: int, limit: int | None) -> list[int]:
    """At most `limit` of n positions, ascending, chosen by a fixed hash: no period of the data
    (a category every fourth sample) can fall in with it."""
    if limit is None or n <= limit:
        return list(range(n))
    return sorted(int(i) for i in epoch_order(n, SPREAD, 0)[:limit])


def check_sizes(size: int | None, *sets: Sequence[Sample]) -> None:
    """Raise `UserError` where images differ in size and no --size is given: before a run folder is
    begun, which the same command with one could not go on in. Of each set `LOOKED_AT` are looked
    at, spread over it; a rare odd one is found when its batch comes."""
    if size is None:
        _one_size(one[i].image.shape for one in sets for i in spread(len(one), LOOKED_AT))


def _one_size(shapes: Iterable[tuple[int, ...]]) -> None:
    found = set(shapes)
    if len(found) > 1:
        raise UserError(f"the images have {len(found)} sizes; give one with --size.")


def to_tensors(samples: Sequence[Sample], size: int | None = None) -> tuple[Images, ArtifactMap]:
    """A batch in [0, 1]; masks to their images' size, both to `size` x `size` where given.

    A detector's own masks, which lie at its stride, are enlarged as it enlarges its logits.
    Raises `UserError` where sizes differ and none was given.
    """
    pairs = [_pair(labelled(sample), size) for sample in samples]
    _one_size(tuple(image.shape) for image, _ in pairs)
    return torch.cat([image for image, _ in pairs]), torch.cat([mask for _, mask in pairs])


def to_pictures(samples: Sequence[Sample], size: int | None = None) -> Images:
    """The images alone, whether labelled or not, else as `to_tensors`."""
    unmarked = [replace(s, mask=np.zeros(s.image.shape[:2], np.uint8)) for s in samples]
    return to_tensors(unmarked, size)[0]


def training_batch(
    samples: Sequence[Sample],
    batch: int,
    augmentation: Augmentation,
    *,
    seed: int,
    step: int,
    size: int | None = None,
    device: torch.device | str = "cpu",
    quotas: Quotas | None = None,
    share: Share = WHOLE,
) -> tuple[Images, ArtifactMap]:
    """Augmented global batch `step`: a pure function of (samples, seed, step), on the device.

    Each process reads its share of the samples; all have the whole batch, for an augmentation may
    look at a neighbour.
    """
    order = mix(seed, ORDER)
    if quotas:
        places = quotas.batch(batch, order, step)
    else:
        places = batch_indices(len(samples), batch, order, step)
    chosen = [samples[i] for i in share.rows(places)]
    images, masks = (share.whole(x.to(device)) for x in to_tensors(chosen, size))
    allowed = torch.tensor([may_mirror(s.record, augmentation.unflipped) for s in chosen])
    may_flip = share.whole(allowed.to(device))
    return augment(images, masks, augmentation, generator(seed, AUGMENT, step), may_flip)


def may_mirror(record: Record, unflipped: Collection[str]) -> bool:
    """Whether its mirror image is as good: not of a category with text, nor of a prompt that names
    one (what is labelled while treating has no category)."""
    return {record.category, *re.findall(r"\w+", record.prompt.lower())}.isdisjoint(unflipped)


def reference_batch(
    samples: Sequence[Sample], batch: int, *, seed: int, step: int, size: int | None = None
) -> tuple[Images, Images, ArtifactMap]:
    """Batch `step` of samples that all have a reference: broken, sound, label; unaugmented."""
    places = batch_indices(len(samples), batch, mix(seed, REFERENCES), step)
    chosen = [samples[i] for i in places]
    sound = [replace(s, image=s.reference) for s in chosen if s.reference is not None]
    images, target = to_tensors(chosen, size)
    return images, to_tensors(sound, size)[0], target


def nearest(samples: Sequence[Sample], records: Sequence[Record], share: float) -> list[int]:
    """Positions of the marked samples that are nearest to their reference, in each category.

    By the squared difference, summed over the label: where the reference shows another gesture than
    the broken image, the way to it is no mend. Summed, small labels come first; by the mean over
    the label the redrawn renders agree with their originals as often.
    """
    found: dict[str, list[tuple[float, int]]] = {}
    for i, record in enumerate(records):
        sample = samples[i] if record.referenced else None
        if sample is None or sample.reference is None:
            continue
        broken, target = to_tensors([sample])
        sound, _ = to_tensors([replace(sample, image=sample.reference)])
        distance = ((sound - broken) * (target > LABELLED)).square().sum().item()
        if distance:  # else nothing is marked, or what is marked did not change
            found.setdefault(record.category or "", []).append((distance, i))
    ranked = (sorted(rows)[: math.ceil(share * len(rows) - 1e-9)] for rows in found.values())
    return sorted(i for rows in ranked for _, i in rows)


def mean_artifact(samples: Sequence[Sample], limit: int = 1000) -> float:
    """Mean label over at most `limit` samples, within [0.001, 0.5]."""
    masks = (_pair(labelled(samples[i]), None)[1] for i in spread(len(samples), limit))
    mean = float(np.mean([mask.mean().item() for mask in masks]))
    return min(max(mean, 0.001), 0.5)


def _pair(sample: Sample, size: int | None) -> tuple[Tensor, Tensor]:
    image: Tensor = from_uint8(sample.image[None])
    mask = torch.from_numpy(np.array(sample.mask))[None, None].float() / 255
    stored = image.shape[-2:]
    if sample.record.source == "pseudo" and mask.shape[-2] < stored[0]:
        mask = enlarged_by_logits(mask, stored)
    wanted = stored if size is None else (size, size)
    return _resized(image, wanted), _resized(_resized(mask, stored), wanted)


def _resized(picture: Tensor, size: Sequence[int]) -> Tensor:
    if picture.shape[-2:] != tuple(size):
        picture = F.interpolate(picture, size=tuple(size), mode="bilinear", antialias=True)
    return picture.clamp(0, 1)
