"""Draws and a corrector in; whatever is missing of both arms' images, masks and records out.

OUT/images/base/*.png OUT/images/NAME/*.png    of the same prompts and noise
OUT/masks/*.png                                what was corrected
OUT/records/ARM/*.json                         seconds, the share changed, the base's dynamics
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base_models.load import load_base
from base_models.sample import decode
from core.contracts import DiffusionModel
from core.heatmap import Map, overlay, write_map
from core.images import Picture, contact_sheet, read_images, round_to_8bit, write_image
from core.memory import in_use
from core.run import Run
from core.storage import read_json, write_atomic
from core.wishes import MET
from detector.measure import clock
from treat.arms import BASE, Draw, encode, image_path
from treat.correct_settings import Config
from treat.correctors.acceleration import region_curves, shown_mask
from treat.correctors.moment import Corrector
from treat.correctors.sampling import draw_corrected
from treat.evaluate import Judge, first_pairs
from treat.report import Pair
from treat.step import Chain


@torch.no_grad()
def draw_pairs(
    run: Run,
    config: Config,
    size: tuple[int, int],
    make: Callable[[DiffusionModel], Corrector],
    draws: Sequence[Draw],
    judge: Judge,
    place: torch.device,
) -> bool:
    """Draw the images of both arms that are not there yet; False where the run was asked to stop.

    A step of the run's figures is a pair. The arms take turns at being first.
    """
    arms = (BASE, config.corrector)
    starts = range(0, len(draws), config.batch)
    batches = [range(at, min(at + config.batch, len(draws))) for at in starts]
    left = [rows for rows in batches if any(missing(run.folder, name, rows) for name in arms)]
    if not left:
        return True
    model = load_base(config.base)
    text = encode(model, draws, str(place))
    model.to(place)
    corrector = make(model)
    model.drop_text_encoders()
    schedule = model.schedule(config.sampling_steps, *size)
    begun = len(batches) - len(left)
    warm_up(Chain(model, schedule, {n: part[:1].to(place) for n, part in text.items()}), corrector)
    for batch in run.progress(left, len(batches), begun, config.corrector):
        if run.interrupted:
            return False
        turn = batch[0] // config.batch % 2
        for name in arms[::-1] if turn else arms:
            rows = missing(run.folder, name, batch)
            if rows:
                conditioning = {n: part[rows].to(place) for n, part in text.items()}
                chain, drawn = Chain(model, schedule, conditioning), [draws[i] for i in rows]
                draw_rows(run, name, chain, rows, drawn, None if name == BASE else corrector, judge)
        done = batch[-1] + 1
        run.log(done, **figures_of(run.folder, arms, batch), **in_use(place))
        if "sample" in run.wishes() and config.shown:
            pairs = first_pairs(run.folder, arms, draws[: min(done, config.shown)], judge)
            picture = sheet(run.folder, pairs, config.corrector)
            write_image(run.pictures / f"step-{done:08d}.png", picture)
            run.event("info", f"{MET['sample']} after step {done}, as asked", step=done)
    return True


def warm_up(chain: Chain, corrector: Corrector) -> None:
    """Draw an image either way and drop it: what only a first drawing costs is of neither arm."""
    for one in (None, corrector):
        noise = chain.model.noise([0], chain.schedule.height, chain.schedule.width)
        decode(chain.model, draw_corrected(chain, noise, [0], one).latents, chain.precision)


def missing(folder: Path, arm: str, rows: Sequence[int]) -> list[int]:
    return [i for i in rows if not image_path(folder, arm, i).exists()]


def draw_rows(
    run: Run,
    name: str,
    chain: Chain,
    rows: Sequence[int],
    draws: Sequence[Draw],
    corrector: Corrector | None,
    judge: Judge,
) -> None:
    """These images of one arm at once.

    Beside each image its record: seconds (of the CPU, where one draws), what was changed, and of
    the base the dynamics.
    """
    model, schedule, seeds = chain.model, chain.schedule, [draw.seed for draw in draws]
    place = schedule.timesteps.device
    begun = clock(place)
    noise = model.noise(seeds, schedule.height, schedule.width)
    drawn = draw_corrected(chain, noise, seeds, corrector)
    images = round_to_8bit(decode(model, drawn.latents, chain.precision)).cpu()
    seconds = (clock(place) - begun) / len(rows)
    curves: list[dict[str, Any]] = [{} for _ in rows]
    if corrector is None:
        maps = judge(images, [draw.prompt for draw in draws])
        curves = region_curves(drawn.trajectory, maps)
    masks = shown_mask(drawn.mask, images)
    for i, image, mask, curve in zip(rows, images, masks, curves, strict=True):
        record = {"seconds": seconds, "changed": mask.mean().item(), "curves": curve}
        keep(run.folder, name, i, image, mask, record)


def figures_of(folder: Path, arms: Sequence[str], rows: Sequence[int]) -> dict[str, float]:
    """Of one batch: `clock`'s seconds an image in either arm, the share of its area changed."""
    base, corrected = ([read_json(record_path(folder, n, i)) for i in rows] for n in arms)
    return {
        "seconds_plain": float(np.mean([one["seconds"] for one in base])),
        "seconds_corrected": float(np.mean([one["seconds"] for one in corrected])),
        "area_changed": float(np.mean([one["changed"] for one in corrected])),
    }


def keep(
    folder: Path, arm: str, index: int, image: Picture, mask: Map, record: dict[str, Any]
) -> None:
    """The image last: one that is there has its record and, but in the base's arm, its mask."""
    write_atomic(record_path(folder, arm, index), json.dumps(record).encode())
    if arm != BASE:
        write_map(mask_path(folder, index), mask)
    path = image_path(folder, arm, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, image)


def record_path(folder: Path, arm: str, index: int) -> Path:
    path = folder / "records" / arm / f"{index:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def mask_path(folder: Path, index: int) -> Path:
    path = folder / "masks" / f"{index:06d}.png"
    path.parent.mkdir(exist_ok=True)
    return path


def sheet(folder: Path, pairs: Sequence[Pair], corrector: str) -> torch.Tensor:
    """A row for every pair: before and its map, what was corrected, after and its map."""
    masks = [shown(folder, i) for i in range(len(pairs))]
    rows = []
    for pair, mask in zip(pairs, masks, strict=True):
        laid = {n: overlay(i[None], pair.maps[n][None])[0] for n, i in pair.images.items()}
        before = pair.images[BASE]
        marked = overlay(before[None], mask)[0]
        rows.append([before, laid[BASE], marked, pair.images[corrector], laid[corrector]])
    columns = ["before", "judged", "corrected", "after", "judged"]
    return contact_sheet(rows, [pair.prompt for pair in pairs], columns)


def shown(folder: Path, index: int) -> torch.Tensor:
    return read_images([mask_path(folder, index)])[:, :1]
