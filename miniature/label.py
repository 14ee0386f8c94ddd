"""Play the human annotator: a folder of images and prompts in, the oracle's soft masks out.

    diffdoctor miniature label FOLDER

FOLDER/images/*.png and FOLDER/prompts.jsonl in; FOLDER/masks/*.png (8-bit, 255 = artifact) and
FOLDER/labels.csv out. Masks that are there are kept, so a stopped command goes on.
`--missed 0.2 --invented 0.05` labels as people do, with slips.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field
from tqdm import tqdm

import core.config
from core.contracts import ArtifactMap, Images
from core.errors import UserError
from core.heatmap import read_map, write_map
from core.images import read_images
from core.storage import write_atomic
from miniature import blobs, listing
from miniature.law import CATEGORIES
from miniature.oracle import Oracle
from miniature.prompts import category_of
from miniature.slips import HALF, slipped

BATCH = 32
"""Images of one category that the oracle decodes together."""
COLUMNS = ("image", "prompt", "category", "artifact", "max", "area")


class Config(core.config.Config):
    """Which folder, and how wide the brush is."""

    folder: Annotated[Path, tyro.conf.Positional, core.config.placed("FOLDER")]
    """Holds images/*.png and prompts.jsonl."""
    grow: int = Field(blobs.BRUSH, ge=0, le=8)
    """Pixels that the brush adds around an artifact."""
    missed: float = Field(0.0, ge=0, le=1)
    """Share of the marked regions that are not painted."""
    invented: float = Field(0.0, ge=0, le=1)
    """Share of the images in which one sound spot is painted."""
    seed: int = Field(0, ge=0)
    """Of the slips: the same image, seed and shares give the same mask."""


def main(config: Config) -> None:
    """Write the masks that are not there yet, then the table of all."""
    said = listing.read(config.folder)
    todo = [path for path in said if not mask_of(path).is_file()]
    _make(config.folder / "masks")
    with tqdm(total=len(said), initial=len(said) - len(todo), desc="label") as bar:
        for batch in batches(todo, said):
            images, prompts = read_images(batch), [said[path] for path in batch]
            maps = label(images, prompts, config.grow)
            maps = slipped(images, maps, config.missed, config.invented, config.seed)
            for path, map in zip(batch, maps, strict=True):
                write_map(mask_of(path), map)
            bar.update(len(batch))
    write_atomic(config.folder / "labels.csv", table(said).encode())


def label(
    images: Images,
    prompts: Sequence[str],
    grow: int = blobs.BRUSH,
    progress: Callable[[int], None] = lambda n: None,
) -> ArtifactMap:
    """What an annotator would paint: soft maps, `grow` pixels wider than the flaws.

    `progress` gets the number of images just done. Raises `UserError` for images of another size
    and for prompts that are not of the world.
    """
    posterior = Oracle().diagnose(images, prompts, progress).posterior
    return blobs.grow(blobs.without_specks(posterior, blobs.MARKED), grow)


def batches(paths: Sequence[Path], said: Mapping[Path, str]) -> list[list[Path]]:
    """Paths in batches of one category: the oracle decodes those together."""
    groups = {c: [path for path in paths if category_of(said[path]) == c] for c in CATEGORIES}
    return [own[at : at + BATCH] for own in groups.values() for at in range(0, len(own), BATCH)]


def table(said: Mapping[Path, str]) -> str:
    """The masks as they stand, one CSV line an image; `artifact` is 1 where the map reaches .5."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for path, prompt in said.items():
        map = read_map(mask_of(path))
        peak, area = float(map.max()), float((map >= HALF).float().mean())
        found = (int(peak >= HALF), round(peak, 4), round(area, 6))
        writer.writerow((path.name, prompt, category_of(prompt), *found))
    return text.getvalue()


def mask_of(image: Path) -> Path:
    return image.parent.parent / "masks" / f"{image.stem}.png"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder} ({error.strerror}): check the folder.") from error


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor miniature label")
