"""A base model, adapters, prompts and seeds in; paired figures, a sheet and a report out.

Every arm (the base, and each adapter) draws the same prompts from the same seeds, so that every
difference is a paired one. The judge decides; other detectors are read beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base_models.guidance import check_guidance
from base_models.quantise import check_quantisation
from base_models.sizes import check_steps, checked_size, of_size, usual_steps
from core.contracts import ArtifactMap, Detector, Images
from core.errors import UserError
from core.heatmap import overlay
from core.images import contact_sheet, read_images, write_image
from core.prompts import read_prompts
from core.run import PAUSED, Run
from core.storage import write_atomic
from detector.measure import device
from detector.storage import open_detector
from treat import figures, strengths
from treat.adapter import Adapter, read_adapter
from treat.arms import (
    BASE,
    Draw,
    Sampling,
    check_arms,
    check_origins,
    draw_arm,
    image_path,
    named,
    open_arms,
    plan,
    trained,
)
from treat.curves import run_curves
from treat.evaluate_settings import Config
from treat.report import Curve, Pair, render
from treat.taught import tell_of_taught

Judge = Callable[[Images, Sequence[str]], ArtifactMap]
Meters = Callable[[Images, Sequence[str]], Mapping[str, Any]]
Flagged = Callable[[Images, Sequence[str]], Any]
DRAWN_BY = ("sampling_steps", "height", "width")
"""Settings that an evaluation shares with the treatments that it judges."""
Reading = tuple[dict[str, np.ndarray], ArtifactMap]


def main(
    config: Config,
    judge: Judge | None = None,
    meters: Meters | None = None,
    flagged: Flagged | None = None,
    judge_name: str = "a judge given by the caller",
) -> int | None:
    """Draw, judge, compare, report.

    `judge(images, prompts)` gives artifact maps, `flagged` one truth value an image (default: the
    largest pixel of the map reaches .5), `meters` further arrays an image (`treat.figures` says
    how floats, integers and texts are read). Returns an exit code when interrupted.
    """
    paths = named(config.adapters)
    checked_size(config.base, config.height, config.width)
    check_guidance(config.base, config.guidance)
    check_quantisation(config.quantise)
    beside = read_adapter(config.beside) if config.beside else None
    swept = strengths.sweep(paths, config.strengths)
    opened = open_arms(paths, config.step, config.beside)
    check_origins(opened, config.base, config.guidance)
    how = sampling(config, opened)
    config = of_size(config, (how.height, how.width), sampling_steps=how.steps)
    check_arms(opened, config.base, beside)
    arms = strengths.spread(opened, swept)
    check_control(config.control, paths)
    detectors = {name: open_detector(Path(path)) for name, path in named(config.detectors).items()}
    if judge is None:
        judge, judge_name = first_detector(detectors)
    draws = plan(read_prompts(config.prompts), config.n, config.seed)
    if len(draws) < 2:
        raise UserError("one image makes no interval: give more prompts, or --n 100.")

    with Run.start(config, config.out, "treat.evaluate") as run:
        taught = tell_of_taught(run, opened, paths, {draw.prompt for draw in draws})
        for name, adapter in arms.items():
            draw_arm(run.folder, name, adapter, draws, how, progress(run, name))
            if run.interrupted:
                return PAUSED
        read = reader(judge, flagged, meters, detectors)
        tables = measure(run, list(arms), draws, config.batch, read)
        for name, table in tables.items():
            keys = {"prompt": [d.prompt for d in draws], "seed": [d.seed for d in draws]}
            write_atomic(run.folder / f"{name}.csv", figures.as_csv({**keys, **table}))
        summary = summarise(tables, config.control, config.seed)
        summary |= {"judge": judge_name, "prompts": config.prompts.name, "taught": taught}
        pairs = first_pairs(run.folder, list(arms), draws[: config.shown], judge)
        curves = strengths.curves(swept, summary["arms"])
        curves += [curve for path in paths.values() for curve in run_curves(Path(path), judge)]
        if swept and pairs:
            write_image(run.folder / "strengths.png", strengths.sheet(swept, pairs))
        publish(run, summary, pairs, curves)
    return None


def check_control(control: str | None, paths: Mapping[str, str]) -> None:
    if control is not None and control not in paths:
        known = ", ".join(paths) or "none is given"
        raise UserError(f"the control '{control}' is none of the adapters ({known}): name one.")


def first_detector(
    detectors: Mapping[str, Detector], option: str = "--detectors"
) -> tuple[Judge, str]:
    if not detectors:
        raise UserError(f"nobody judges: give at least one detector, {option} NAME=FOLDER.")
    name, detector = next(iter(detectors.items()))
    return (lambda images, prompts: detector(images)), f"detector {name}, largest pixel >= .5"


def sampling(config: Config, arms: Mapping[str, Adapter | None]) -> Sampling:
    """As asked, else as the arms were trained, else as the base is usually drawn.

    Raises `UserError` for a base that is damaged or cannot draw so, and for arms that disagree.
    """
    asked = {name: getattr(config, name) or trained(arms, name) for name in DRAWN_BY}
    steps = asked["sampling_steps"] or usual_steps(config.base)
    check_steps(config.base, steps)
    return Sampling(
        config.base,
        steps,
        *checked_size(config.base, asked["height"], asked["width"]),
        config.batch,
        str(device(config.device)),
        config.dtype,
        config.beside,
        config.quantise,
        config.guidance,
    )


def progress(run: Run, name: str) -> Callable:
    """A loop with a bar that ends when the run is asked to stop."""

    def loop(items: Sequence[int]):
        for item in run.progress(items, len(items), description=name):
            if run.interrupted:
                return
            yield item

    return loop


# Figures


def reader(
    judge: Judge,
    flagged: Flagged | None,
    meters: Meters | None,
    detectors: Mapping[str, Detector],
) -> Callable[[Images, Sequence[str]], Reading]:
    """All figures of a batch, and the judge's maps."""

    def read(images: Images, prompts: Sequence[str]) -> Reading:
        maps = judge(images, prompts)
        hits = flagged(images, prompts) if flagged else figures.peak_flagged(maps)
        table = figures.map_figures(maps)
        table["artifact_frequency"] = np.asarray(hits, bool)
        table["sharpness"] = figures.sharpness(images)
        for name, detector in detectors.items():
            seen = detector(images)
            table |= figures.map_figures(seen, prefix=name)
            table[f"{name}_frequency"] = figures.peak_flagged(seen)
        return table | figures.as_arrays(meters(images, prompts) if meters else {}), maps

    return read


@torch.no_grad()
def measure(
    run: Run,
    arms: Sequence[str],
    draws: Sequence[Draw],
    batch: int,
    read: Callable[[Images, Sequence[str]], Reading],
) -> dict[str, dict[str, np.ndarray]]:
    """A table for every arm, one row an image; the base is first."""
    parts: dict[str, list[figures.Table]] = {name: [] for name in arms}
    starts = range(0, len(draws), batch)
    for start in run.progress(starts, len(starts), description="judge"):
        indices = range(start, min(start + batch, len(draws)))
        prompts = [draws[i].prompt for i in indices]
        base: tuple[Images, ArtifactMap] | None = None
        for name in arms:
            images = read_images([image_path(run.folder, name, i) for i in indices])
            table, maps = read(images, prompts)
            base = base or (images, maps)
            table["change_outside"] = figures.change_outside(images, *base)
            parts[name].append(table)
    return {name: figures.joined(tables) for name, tables in parts.items()}


def summarise(
    tables: Mapping[str, figures.Table], control: str | None, seed: int
) -> dict[str, Any]:
    """Every arm's figures, and the paired differences to the control, then to the base.

    To the control first: it is what a treatment is judged by.
    """
    arms = {name: figures.summarise(table, seed) for name, table in tables.items()}
    treated = {name: table for name, table in tables.items() if name != BASE}
    differences = {}
    for other in filter(None, (control, BASE)):
        for name, table in treated.items():
            if name != other:
                differences[f"{name} - {other}"] = figures.compare(table, tables[other], seed)
    for name, table in treated.items():
        arms[name]["largest_shift"] = figures.largest_shift(table, tables[BASE])
    return {"arms": arms, "differences": differences, "method": figures.METHOD}


# Pictures


@torch.no_grad()
def first_pairs(folder: Path, arms: Sequence[str], draws: Sequence[Draw], judge: Judge):
    """The first prompts with every arm's image and map; the first, never the best."""
    pairs = []
    for index, draw in enumerate(draws):
        images = read_images([image_path(folder, name, index) for name in arms])
        maps = judge(images, [draw.prompt] * len(arms))
        pairs.append(
            Pair(
                draw.prompt,
                draw.seed,
                dict(zip(arms, images, strict=True)),
                dict(zip(arms, maps, strict=True)),
            )
        )
    return pairs


def sheet(pairs: Sequence[Pair]) -> Tensor:
    """A row for every prompt: each arm's image and, beside it, its heat-map."""
    arms = list(pairs[0].images)
    rows = [
        [
            picture
            for name in arms
            for picture in (
                pair.images[name],
                overlay(pair.images[name][None], pair.maps[name][None])[0],
            )
        ]
        for pair in pairs
    ]
    columns = [text for name in arms for text in (name, "")]
    return contact_sheet(rows, [pair.prompt for pair in pairs], columns)


def publish(
    run: Run, summary: dict[str, Any], pairs: Sequence[Pair], curves: Sequence[Curve]
) -> None:
    """Write the sheet, the report and, last, the summary."""
    if pairs:
        write_image(run.folder / "sheet.png", sheet(pairs))
    first = summary["arms"][BASE]
    note = (
        f"{first['n']} images an arm from the same prompts ({summary['prompts']}) and the same "
        f"seeds; judged by {summary['judge']}. The pictures below are the first ones, not chosen."
    )
    for name, count in summary["taught"].items():
        if count is None:
            note += f" Whether any of the prompts taught '{name}' is not known."
        elif count:
            note += f" {count} of the prompts taught '{name}' or were watched."
    page = render("Before and after treatment", note, summary, pairs, curves)
    write_atomic(run.folder / "report.html", page.encode())
    run.summary({**summary, "report": "report.html", "sheet": "sheet.png" if pairs else None})
    for name, change in summary["differences"].items():
        frequency = change["artifact_frequency"]
        low, high = frequency["interval"]
        told = f"{name}: {100 * frequency['difference']:+.1f} points of images with artifacts"
        run.event("info", f"{told}, 95 % {100 * low:+.1f} to {100 * high:+.1f}")
    files = ["report.html", *(["sheet.png"] if pairs else []), "summary.json"]
    run.event("info", f"in {run.folder}: {', '.join(files)}")
