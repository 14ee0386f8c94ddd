"""Labelled images of the miniature for the demo: prompts and grades in, shard stores out.

Images of every grade carry the masks that an annotator would paint (the oracle's); renders carry
empty ones and stand for photographs; redrawn ones stand beside the render they were made from.
What is already in a store is not made again.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from base_models.load import load_base
from core.images import from_uint8
from core.samples import Record
from core.seeds import mix
from core.shard_writer import ShardWriter
from core.storage import write_atomic
from miniature.label import label
from miniature.prompts import Part, balanced, split
from miniature.render import open_autoencoder, render_samples, to_sample
from miniature.sample import draw_records, sample_records
from treat.redraw import REDRAW, redraw

BATCH = 100
PROMPTS = 1000
"""Lines of a prompt list: its prompts again and again, the categories in turn."""


def write_prompts(path: Path, part: Part, seed: int) -> None:
    """A list that is balanced over the categories wherever it is cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = balanced(split()[part], PROMPTS, seed)
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


def write_generated(
    folder: Path,
    base: str,
    prompts: Sequence[str],
    n: int,
    steps: int,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    batch: int = BATCH,
) -> None:
    """n images of a base model, the categories of the prompts in turn, labelled by the oracle.

    Base and oracle work on the device, `batch` images at a time.
    """
    with ShardWriter(folder, shard_size=4 * BATCH, name=Path(base).name) as writer:
        records = sample_records(base, prompts, n, seed)
        missing = [record for record in records if record.key not in writer]
        if not missing:
            return
        drawn = draw_records(load_base(base).to(device), missing, steps, batch)
        for images, chosen in tqdm(drawn, f"label {Path(base).name}", -(-len(missing) // batch)):
            masks = label(images.to(device), [record.prompt for record in chosen])
            for image, mask, record in zip(images, masks, chosen, strict=True):
                writer.write(to_sample(image, mask[0], record))


def write_renders(folder: Path, base: str, prompts: Sequence[str], n: int, seed: int) -> None:
    """n valid images as the base's autoencoder shows them: no detector should learn its trace."""
    with ShardWriter(folder, shard_size=4 * BATCH, name="render") as writer:
        for sample in render_samples(n, seed, open_autoencoder(base), prompts=prompts):
            writer.write(sample)


def write_redrawn(
    folder: Path, base: str, prompts: Sequence[str], n: int, steps: int, seed: int
) -> None:
    """n valid images as the base redraws them, labelled by the oracle, beside their originals.

    Batches enter the sampling at different steps, in turn, from its second to its middle.
    """
    with ShardWriter(folder, shard_size=4 * BATCH, name="redrawn") as writer:
        if f"redrawn-{seed}-{n - 1:06d}" in writer:
            return
        half = max(1, steps // 2)
        stride = max(1, half // -(-n // BATCH))
        model, autoencoder = load_base(base), open_autoencoder(base)
        sound = render_samples(n, seed, autoencoder, prompts=prompts)
        for number, at in enumerate(tqdm(range(0, n, BATCH), "redraw")):
            originals = sound[at : at + BATCH]
            records = [redrawn(s.record, seed, at + i, base) for i, s in enumerate(originals)]
            if records[-1].key in writer:
                continue
            said, seeds = [r.prompt for r in records], [r.seed or 0 for r in records]
            pictures = from_uint8(np.stack([s.image for s in originals]))
            start = min(1 + number * stride % half, steps - 1)
            images = redraw(model, pictures, said, seeds, steps=steps, start=start)
            rows = zip(images, label(images, said), records, originals, strict=True)
            for image, mask, record, original in rows:
                writer.write(to_sample(image, mask[0], record, original.image))


def redrawn(original: Record, seed: int, i: int, base: str) -> Record:
    """Who image i is: what the original shows, as `base` draws it."""
    return Record(
        key=f"redrawn-{seed}-{i:06d}",
        source="human",
        category=original.category,
        prompt=original.prompt,
        generator=Path(base).name,
        seed=mix(seed, REDRAW, i) % 2**32,
        referenced=True,
    )
