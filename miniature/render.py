"""Draw the law: prompts and a seed in, valid (or knowingly broken) images with their masks out.

    diffdoctor miniature render --n 100 --out renders

OUT/images/*.png, OUT/images/metadata.jsonl (captions, for `treat --offline OUT/images`) and
OUT/prompts.jsonl. Image i depends on the seed, i and its prompt alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

import core.config
from core.contracts import Images
from core.images import Picture, round_to_8bit, to_uint8, write_image
from core.samples import Record, Sample
from core.seeds import generator, mix
from detector.patches import corrupt
from miniature import listing
from miniature.bases import base_folder
from miniature.blobs import BRUSH, grow
from miniature.faults import FAULTS, plant
from miniature.law import CATEGORIES, SIZE, Scenes, all_prompts, draw, draw_off_grid
from miniature.law import prompts as prompts_of
from miniature.paint import render
from miniature.prompts import balanced, category_of, stated
from miniature.vae import posterior

VALID, FAULT, CORRUPTION = 21, 22, 23
"""What a draw is for; see `core.seeds`."""
OFF_GRID_TINT = 0.05
"""Largest change of a layer's colour off the grid; the oracle allows twice that."""
BATCH = 50


class Config(core.config.Config):
    """How many valid images, of what, and where they go."""

    out: Path
    """Folder for images/ and prompts.jsonl."""
    n: int = Field(100, ge=1)
    """How many."""
    categories: tuple[Literal["hand", "face", "bicycle", "sign", "scenery"], ...] = tuple(
        CATEGORIES  # type: ignore[arg-type]
    )
    """Shared evenly."""
    off_grid: bool = False
    """Any pose within the law's limits and slightly other colours: harder, still valid."""
    vae: str | None = None
    """Grade or folder of a base model: images go through its autoencoder and back."""
    seed: int = 0
    """The same seed renders the same images."""


def main(config: Config) -> None:
    """Write the images that are not there yet."""
    allowed = [p for p, (name, _) in all_prompts().items() if name in config.categories]
    vae = None if config.vae is None else open_autoencoder(config.vae)
    plan = _plan(config.n, config.seed, allowed, config.off_grid, vae is not None)
    lines = [listing.line_of(record) for record in plan]
    missing = listing.claim(config.out, lines)
    for at in tqdm(range(0, len(missing), BATCH), "render"):
        rows = missing[at : at + BATCH]
        chosen = [plan[i] for i in rows]
        for record, image in zip(chosen, _images(chosen, config.off_grid, vae), strict=True):
            write_image(config.out / "images" / f"{record.key}.png", image)
    listing.write_captions(config.out, lines)


def render_samples(
    n: int,
    seed: int,
    vae: AutoencoderKL | None = None,
    *,
    prompts: Sequence[str] | None = None,
    off_grid: bool = False,
) -> list[Sample]:
    """n valid images as photographs would be: source `real`, an empty mask, caption set.

    Categories come in turn; `prompts` restricts what is drawn (default: every prompt).
    """
    allowed = list(all_prompts()) if prompts is None else prompts
    plan = _plan(n, seed, allowed, off_grid, vae is not None)
    samples, empty = [], torch.zeros(SIZE, SIZE)
    for at in range(0, n, BATCH):
        chosen = plan[at : at + BATCH]
        images = _images(chosen, off_grid, vae)
        samples += [to_sample(i, empty, r) for i, r in zip(images, chosen, strict=True)]
    return samples


def fault_samples(
    n: int, seed: int, vae: AutoencoderKL | None = None, *, planted: float = 0.5
) -> list[Sample]:
    """n broken images labelled by exactly what was changed, grown by `BRUSH`: `procedural`.

    A share `planted` are the faults of `miniature.faults` in turn, the others random patches.
    The autoencoder sees the image only; the label stays that of the pixels changed before it.
    """
    said = balanced(list(all_prompts()), n, seed)
    samples = []
    for i in range(n):
        turn = int(i * planted)  # planted faults so far
        if int((i + 1) * planted) > turn:
            kind = list(FAULTS)[turn % len(FAULTS)]
            scene, image, changed = plant(kind, 1, generator(seed, FAULT, i))
            said[i] = prompts_of(scene)[0]
        else:
            kind = "corruption"
            image, changed = _corrupted(said[i], generator(seed, CORRUPTION, i))
        image = round_to_8bit(image)
        image = image if vae is None else roundtrip(vae, image)
        record = Record(
            key=f"fault-{seed}-{i:06d}",
            source="procedural",
            category=category_of(said[i]),
            prompt=said[i],
            generator=kind,
            seed=seed,
            caption=said[i],
        )
        mask = grow(changed[:, None].float(), BRUSH)
        samples.append(to_sample(image[0], mask[0, 0], record))
    return samples


def scene_of(prompt: str, g: torch.Generator, off_grid: bool = False) -> Scenes:
    """One random valid scene that shows what the prompt states."""
    name = category_of(prompt)
    scene = draw_off_grid(name, 1, g, OFF_GRID_TINT) if off_grid else draw(name, 1, g)
    values = CATEGORIES[name].factors
    said = {k: torch.tensor([values[k].index(v)]) for k, v in stated(prompt).items()}
    return replace(scene, factors=scene.factors | said)


def to_sample(
    image: Picture,
    mask: Float[Tensor, "h w"],
    record: Record,
    reference: np.ndarray | None = None,
) -> Sample:
    """An image and its soft mask, both rounded to 8 bits; perhaps what the image was made from."""
    levels = (mask * 255).round().to(torch.uint8).cpu().numpy()
    return Sample(record.key, to_uint8(image[None])[0], levels, record, reference)


def open_autoencoder(base: str) -> AutoencoderKL:
    """The autoencoder of a grade or of a pipeline folder, frozen."""
    folder = base_folder(base)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", local_files_only=True)
    return vae.requires_grad_(False).eval()


@torch.no_grad()
def roundtrip(vae: AutoencoderKL, images: Images) -> Images:
    """Images as the autoencoder draws them, 8-bit: what a perfect base model could make."""
    decode: Any = vae.decode
    return round_to_8bit((decode(posterior(vae, images).mode()).sample + 1) / 2)


def _plan(n: int, seed: int, allowed: Sequence[str], off_grid: bool, through: bool) -> list[Record]:
    """Who the images are: image i stays what it is whatever n."""
    origin = "law" + (", off the grid" if off_grid else "") + (", autoencoded" if through else "")
    return [
        Record(
            key=f"render-{seed}-{i:06d}",
            source="real",
            category=category_of(said),
            prompt=said,
            generator=origin,
            seed=mix(seed, VALID, i) % 2**32,
            caption=said,
        )
        for i, said in enumerate(balanced(allowed, n, seed))
    ]


def _images(plan: Sequence[Record], off_grid: bool, vae: AutoencoderKL | None) -> Images:
    drawn = [
        render(scene_of(record.prompt, generator(record.seed or 0), off_grid)) for record in plan
    ]
    images = round_to_8bit(torch.cat(drawn))
    return images if vae is None else roundtrip(vae, images)


def _corrupted(prompt: str, g: torch.Generator) -> tuple[Images, Bool[Tensor, "b h w"]]:
    """A valid image under one random corruption, and the pixels changed."""
    table = list(all_prompts())
    other = table[int(torch.randint(len(table), (), generator=g))]
    image, foreign = (render(scene_of(said, g)) for said in (prompt, other))
    return corrupt(image, foreign, g)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor miniature render")
