"""Images of a base model for prompts of the small world: a grade in, images and prompts out.

    diffdoctor miniature sample --base newest --n 16 --out samples

OUT/images/*.png, OUT/prompts.jsonl, OUT/sheet.png; `diffdoctor miniature label OUT` goes on from
there. Image i depends on the base, the seed, the list of prompts and i.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from tqdm import tqdm

import core.config
from base_models.load import check_base, load_base
from base_models.sample import sample
from core.contracts import DiffusionModel, Images
from core.images import Picture, contact_sheet, read_images, write_image
from core.samples import Record
from core.seeds import mix
from miniature import listing
from miniature.bases import base_folder
from miniature.law import SIZE
from miniature.prompts import Part, balanced, category_of, split

NOISE = 41
"""What a draw is for; see `core.seeds`."""
BATCH = 25
SHEET = 50
"""Images on the contact sheet: the first ones, never chosen."""
COLUMNS = 10


class Config(core.config.Config):
    """Which base model draws how many images of which prompts."""

    out: Path
    """Folder for images/, prompts.jsonl and sheet.png."""
    base: str = "newest"
    """newest, middle, oldest, sdxl, kolors, or a pipeline folder (as of a built ddpm or ldm)."""
    n: int = Field(16, ge=1)
    """How many."""
    steps: int | None = Field(None, ge=1)
    """Sampler steps: 4 of FLUX and 20 of any other, unless given."""
    split: Part = "held_out"
    """Which prompts: those to learn from, to search recipes on, or to report on."""
    seed: int = 0
    """Image i is drawn with seed hash(seed, i)."""


def main(config: Config) -> None:
    """Draw the images that are not there yet, then the sheet."""
    folder = base_folder(config.base)
    plan = sample_records(config.base, split()[config.split], config.n, config.seed)
    steps = config.steps or (4 if check_base(folder) == "FluxPipeline" else 20)
    lines = [listing.line_of(record) | {"steps": steps} for record in plan]
    missing = listing.claim(config.out, lines)
    if missing:
        model, jobs = load_base(str(folder)), [plan[i] for i in missing]
        with tqdm(total=config.n, initial=config.n - len(jobs), desc="sample") as bar:
            for images, records in draw_records(model, jobs, steps):
                for image, record in zip(images, records, strict=True):
                    write_image(config.out / "images" / f"{record.key}.png", image)
                bar.update(len(records))
    write_image(config.out / "sheet.png", sheet(config.out, plan[:SHEET]))


def sample_records(
    base: str,
    prompts: Sequence[str],
    n: int,
    seed: int,
    source: Literal["human", "pseudo"] = "human",
) -> list[Record]:
    """Who n images of a base are: prompts with the categories in turn, and the noise's seeds.

    `source` says who will label them: the oracle plays the human annotator, a detector none.
    """
    name = Path(base).name
    return [
        Record(
            key=f"{name}-{seed}-{i:06d}",
            source=source,
            category=category_of(prompt),
            prompt=prompt,
            generator=name,
            seed=mix(seed, NOISE, i) % 2**32,  # torch keeps 32 bits
        )
        for i, prompt in enumerate(balanced(prompts, n, seed))
    ]


def draw_records(
    model: DiffusionModel, records: Sequence[Record], steps: int, batch: int = BATCH
) -> Iterator[tuple[Images, list[Record]]]:
    """The images of the records, batch by batch, 8-bit."""
    for at in range(0, len(records), batch):
        part = list(records[at : at + batch])
        prompts, seeds = [r.prompt for r in part], [r.seed or 0 for r in part]
        images = sample(model, prompts, seeds, steps=steps, height=SIZE, width=SIZE, batch=batch)
        yield images, part


def sheet(out: Path, records: Sequence[Record]) -> Picture:
    """The first images in rows; with ten columns and five categories in turn, each keeps two."""
    images = read_images([out / "images" / f"{record.key}.png" for record in records])
    rows = [list(images[at : at + COLUMNS]) for at in range(0, len(images), COLUMNS)]
    heads = [record.category for record in records[:COLUMNS]]
    return contact_sheet(rows, columns=heads)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor miniature sample")
