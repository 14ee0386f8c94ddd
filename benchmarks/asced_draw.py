"""A base, correctors and seeds in; every corrector's images, judged, and what they cost, out.

OUT/images/ROW/000000.png    the same seed in every row; `base` is drawn plainly
OUT/records/base/000000.json the image's score-acceleration curves (`benchmarks.score_curve`)
OUT/batches/000000.json      by the first image: seconds, what was changed, the judge's figures
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from base_models.load import load_base
from base_models.sample import decode
from base_models.trajectory import Trajectory
from core.contracts import ArtifactMap, DiffusionModel, Images
from core.images import round_to_8bit, write_image
from core.run import Run, plain
from core.storage import write_atomic
from detector.measure import clock, device
from miniature.law import CATEGORIES, SIZE
from treat.arms import BASE, Draw, encode, image_path
from treat.correct_draw import record_path
from treat.correctors.acceleration import region_curves, shown_mask
from treat.correctors.moment import Corrector
from treat.correctors.sampling import draw_corrected
from treat.evaluate import Reading
from treat.figures import change_outside
from treat.step import Chain

Read = Callable[[Images, Sequence[str]], Reading]
Makers = Mapping[str, Callable[[DiffusionModel], Corrector]]


class Plan(NamedTuple):
    base: str
    draws: Sequence[Draw]
    steps: int
    batch: int
    device: str


class Batch(NamedTuple):
    """Of every row."""

    images: dict[str, Images]
    seconds: dict[str, float]
    """An image."""
    changed: dict[str, list[float]]
    """Share of each image's area."""
    trajectory: Trajectory
    """Of plain sampling."""


@torch.no_grad()
def draw_rows(run: Run, plan: Plan, makers: Makers, read: Read) -> bool:
    """Draw and judge every batch that is not there yet; False where the run was asked to stop."""
    starts = range(0, len(plan.draws), plan.batch)
    missing = [at for at in starts if not batch_path(run.folder, at).exists()]
    if not missing:
        return True
    place, model = device(plan.device), load_base(plan.base)
    text = encode(model, plan.draws, str(place))
    model.to(place)
    arms = {BASE: None, **{name: make(model) for name, make in makers.items()}}
    model.drop_text_encoders()
    schedule = model.schedule(plan.steps, SIZE, SIZE)
    for at in run.progress(missing, len(starts), len(starts) - len(missing), "draw"):
        if run.interrupted:
            return False
        draws = plan.draws[at : at + plan.batch]
        rows = {name: part[at : at + len(draws)].to(place) for name, part in text.items()}
        chain, turn = Chain(model, schedule, rows), at // plan.batch % len(arms)
        order = [*list(arms)[turn:], *list(arms)[:turn]]
        drawn = draw_batch(chain, draws, {name: arms[name] for name in order}, place)
        keep(run.folder, at, drawn, *judged(drawn.images, draws, read))
    return True


def draw_batch(
    chain: Chain,
    draws: Sequence[Draw],
    arms: Mapping[str, Corrector | None],
    place: torch.device,
) -> Batch:
    """One batch of every row, in the order given, each timed from noise to 8-bit image."""
    seeds, images, seconds, changed, plainly = [one.seed for one in draws], {}, {}, {}, None
    for name, corrector in arms.items():
        begun = clock(place)
        drawn = draw_corrected(chain, chain.model.noise(seeds, SIZE, SIZE), seeds, corrector)
        images[name] = round_to_8bit(decode(chain.model, drawn.latents, chain.precision)).cpu()
        seconds[name] = (clock(place) - begun) / len(draws)
        changed[name] = shown_mask(drawn.mask, images[name]).mean(dim=(1, 2, 3)).tolist()
        plainly = drawn.trajectory if name == BASE else plainly
    assert plainly is not None  # BASE is among the arms
    return Batch(images, seconds, changed, plainly)


def judged(
    images: Mapping[str, Images], draws: Sequence[Draw], read: Read
) -> tuple[dict[str, Any], ArtifactMap]:
    """A table for every row, as `treat.evaluate.measure` makes them; the maps of plain sampling."""
    prompts = [one.prompt for one in draws]
    tables: dict[str, Any] = {}
    tables[BASE], maps = read(images[BASE], prompts)
    for name, pictures in images.items():
        table = tables[BASE] if name == BASE else read(pictures, prompts)[0]
        table["change_outside"] = change_outside(pictures, images[BASE], maps)
        tables[name] = table
    return tables, maps


def keep(folder: Path, at: int, drawn: Batch, tables: Mapping[str, Any], maps: ArtifactMap) -> None:
    """Images, curves, and last the batch's record: one that is there is whole."""
    for name, pictures in drawn.images.items():
        image_path(folder, name, 0).parent.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            write_image(image_path(folder, name, at + i), picture)
    # The control: the same dynamics within the flaws of another image of the same category.
    own = region_curves(drawn.trajectory, maps)
    shift = len(CATEGORIES) if len(maps) > len(CATEGORIES) else 1
    others = region_curves(drawn.trajectory, maps.roll(shift, 0))
    for i, (curves, control) in enumerate(zip(own, others, strict=True)):
        record = {"curves": curves, "control": control}
        write_atomic(record_path(folder, BASE, at + i), json.dumps(record).encode())
    found = {"seconds": drawn.seconds, "changed": drawn.changed, "tables": tables}
    batch_path(folder, at).parent.mkdir(exist_ok=True)
    write_atomic(batch_path(folder, at), json.dumps(plain(found)).encode())


def batch_path(folder: Path, at: int) -> Path:
    return folder / "batches" / f"{at:06d}.json"
