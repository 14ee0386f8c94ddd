"""Labelled images of the miniature for the demo: prompts and grades in, shard stores out.

Images of every grade carry the oracle's masks, grown as a person's brush would; renders of the
law carry none and stand for photographs. Prompts are split before anything is drawn.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from base_models.load import load_base
from core.images import Picture, round_to_8bit, to_uint8
from core.samples import Record, Sample
from core.seeds import generator, mix
from core.shards import ShardWriter
from core.storage import write_atomic
from miniature.law import CATEGORIES, SIZE, all_prompts, draw, prompts
from miniature.oracle import Oracle, grow
from miniature.paint import render
from treat.sample import sample

SPLIT, RENDER, NOISE = 1, 2, 3
"""What a draw is for; see `core.seeds`."""
BATCH = 50
BRUSH = 1
"""Pixels that a person's brush adds around an artifact."""


def split_prompts(held: float, seed: int) -> tuple[list[str], list[str]]:
    """Training and held-out prompts of the world, each interleaved over the categories.

    Categories with few prompts repeat theirs, so that every stretch of the list is balanced.
    """
    sides: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for category in CATEGORIES:
        own = [prompt for prompt, (name, _) in all_prompts().items() if name == category]
        order = torch.randperm(len(own), generator=generator(seed, SPLIT, len(own))).tolist()
        cut = max(1, round(held * len(own)))
        sides[1][category] = [own[i] for i in order[:cut]]
        sides[0][category] = [own[i] for i in order[cut:]]
    return interleaved(sides[0]), interleaved(sides[1])


def interleaved(lists: dict[str, list[str]]) -> list[str]:
    longest = max(map(len, lists.values()))
    return [own[i % len(own)] for i in range(longest) for own in lists.values()]


def write_prompts(path: Path, chosen: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{prompt}\n" for prompt in chosen).encode())
    return path


def write_generated(
    folder: Path, base: str, grade: str, chosen: Sequence[str], n: int, steps: int, seed: int
) -> None:
    """n images of one grade with the oracle's masks; those already there are not drawn again."""
    with ShardWriter(folder, shard_size=4 * BATCH, name=grade) as writer:
        jobs = [i for i in range(n) if key(grade, seed, i) not in writer]
        if not jobs:
            return
        model, oracle = load_base(base), Oracle()
        for batch in tqdm(list(chunks(jobs)), f"label {grade}"):
            said = [chosen[i % len(chosen)] for i in batch]
            seeds = [mix(seed, NOISE, i) % 2**32 for i in batch]
            images = sample(model, said, seeds, steps=steps, height=SIZE, width=SIZE, batch=BATCH)
            masks = grow(oracle(images, said), BRUSH)
            for j, i in enumerate(batch):
                record = Record(
                    key=key(grade, seed, i),
                    source="human",  # the oracle plays the annotator
                    category=all_prompts()[said[j]][0],
                    prompt=said[j],
                    generator=grade,
                    seed=seeds[j],
                    teacher="oracle",
                )
                writer.write(as_sample(images[j], masks[j, 0], record))


def write_renders(folder: Path, chosen: Sequence[str], n: int, seed: int) -> None:
    """About n valid images, none of them with a prompt outside `chosen`; their masks are empty."""
    allowed = set(chosen)
    with ShardWriter(folder, shard_size=4 * BATCH, name="render") as writer:
        for c, category in enumerate(CATEGORIES):
            scenes = draw(category, 4 * n // len(CATEGORIES), generator(seed, RENDER, c))
            said = prompts(scenes)
            rows = [i for i, prompt in enumerate(said) if prompt in allowed]
            rows = rows[: n // len(CATEGORIES)]
            for batch in chunks(rows):
                images = round_to_8bit(render(scenes[torch.tensor(batch)]))
                for image, i in zip(images, batch, strict=True):
                    record = Record(
                        key=key(f"render-{category}", seed, i),
                        source="procedural",
                        category=category,
                        prompt=said[i],
                        generator="law",
                    )
                    writer.write(as_sample(image, torch.zeros(SIZE, SIZE), record))


def as_sample(image: Picture, mask: Float[Tensor, "h w"], record: Record) -> Sample:
    levels = (mask * 255).round().to(torch.uint8).numpy()
    return Sample(record.key, to_uint8(image[None])[0], levels, record)


def key(name: str, seed: int, i: int) -> str:
    return f"{name}-{seed}-{i:06d}"


def chunks(items: Sequence[int]) -> Iterator[list[int]]:
    for at in range(0, len(items), BATCH):
        yield list(items[at : at + BATCH])
