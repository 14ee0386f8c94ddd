"""A toy world: a coloured shape on a plain ground; some carry planted squares, the artifacts."""

from pathlib import Path

import numpy as np

from core.heatmap import write_map
from core.images import from_uint8, write_image
from core.samples import Record, Sample
from core.shard_writer import ShardWriter

SIZE = 32
CATEGORIES = ("disc", "bar")


def toy_samples(n: int, seed: int = 0, size: int = SIZE) -> list[Sample]:
    """A sound photograph, an image beside its sound original and one without, in turn.

    Four samples share each prompt.
    """
    return [_sample(np.random.default_rng([seed, i]), i, size) for i in range(n)]


def toy_shards(folder: Path, n: int, seed: int = 0, size: int = SIZE) -> Path:
    with ShardWriter(folder) as writer:
        for sample in toy_samples(n, seed, size):
            writer.write(sample)
    return folder


def toy_folder(folder: Path, n: int) -> Path:
    """The same as a plain folder, with one unlabelled image more."""
    import torch

    for sample in toy_samples(n):
        real = sample.record.source == "real"
        kind = folder / ("real" if real else "images")
        kind.mkdir(parents=True, exist_ok=True)
        write_image(kind / f"{sample.key}.png", from_uint8(sample.image[None])[0])
        if sample.mask is not None and not real:
            (folder / "masks").mkdir(exist_ok=True)
            mask = torch.from_numpy(sample.mask)[None].float() / 255
            write_map(folder / "masks" / f"{sample.key}.png", mask)
        if sample.reference is not None:
            (folder / "references").mkdir(exist_ok=True)
            sound = from_uint8(sample.reference[None])[0]
            write_image(folder / "references" / f"{sample.key}.png", sound)
    write_image(folder / "images" / "nobody-labelled.png", from_uint8(sample.image[None])[0])
    return folder


def _sample(rng: np.random.Generator, i: int, size: int) -> Sample:
    image = np.empty((size, size, 3), np.uint8)
    image[:] = rng.integers(60, 200, 3)
    y, x = np.mgrid[:size, :size]
    category = CATEGORIES[i % 2]
    centre = rng.integers(size // 3, 2 * size // 3, 2)
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (size / 5) ** 2
    if category == "bar":
        inside = abs(x - centre[1]) < size / 10
    image[inside] = rng.integers(0, 256, 3)
    mask = np.zeros((size, size), np.uint8)
    real, sound = i % 3 == 0, image.copy()
    for _ in range(0 if real else rng.integers(1, 3)):
        top, left = rng.integers(0, size - 5, 2)
        image[top : top + 5, left : left + 5] = (255, 0, 255)
        mask[top : top + 5, left : left + 5] = 255
    record = Record(
        key=f"toy-{i:04d}",
        source="real" if real else "procedural",
        category=category,
        prompt=f"{category} number {i // 4}",
        generator="toy",
        referenced=i % 3 == 1,
    )
    reference = sound if record.referenced else None
    return Sample(record.key, image, None if real else mask, record, reference)
