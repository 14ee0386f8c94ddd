"""A base model and a corrector in; its images before and after from the same seeds, compared, out.

    diffdoctor correct --base BASE --corrector asced --prompts held_out.txt --out runs/asced

OUT/images/base/*.png and OUT/images/NAME/*.png (the same prompts and noise), OUT/masks/*.png (what
was corrected), OUT/sheet.png, OUT/acceleration.svg, OUT/report.html, OUT/summary.json. The same
command goes on where it stopped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base_models.load import check_prompts, check_size, load_base
from base_models.sample import decode
from core.contracts import DiffusionModel
from core.heatmap import Map, overlay, write_map
from core.images import Picture, contact_sheet, read_images, round_to_8bit, write_image
from core.inputs import hold
from core.memory import in_use
from core.prompts import read_prompts
from core.run import PAUSED, Run
from core.storage import read_json, write_atomic
from core.wishes import MET
from detector.combine import digests_of
from detector.measure import clock, device
from detector.score_dynamics import Window
from detector.segformer import freeze
from detector.storage import open_detector
from treat.arms import BASE, Draw, encode, image_path, named, plan
from treat.cache import digest
from treat.correct_settings import Config
from treat.correctors.acceleration import drawing, mean_curves, region_curves, shown_mask
from treat.correctors.moment import Corrector
from treat.correctors.opening import (
    CALIBRATED,
    Wanted,
    check_used,
    found_by,
    open_corrector,
)
from treat.correctors.sampling import draw_corrected
from treat.evaluate import (
    Flagged,
    Judge,
    Meters,
    first_detector,
    first_pairs,
    measure,
    reader,
    summarise,
)
from treat.inputs import of_base, of_detector, of_files, of_real
from treat.names import DYNAMICS, UNCERTAINTY
from treat.report import Pair, render
from treat.step import Chain

ITSELF = "itself"


def main(
    config: Config,
    judge: Judge | None = None,
    meters: Meters | None = None,
    flagged: Flagged | None = None,
    judge_name: str = "a judge given by the caller",
) -> int | None:
    """Draw both arms, judge, compare, report; see `treat.evaluate.main` for the judge."""
    check_size(config.base, config.height, config.width)
    check_prompts(config.base, config.prompts is not None)
    place, given = device(config.device), judge
    itself = config.detector in (DYNAMICS, UNCERTAINTY)
    check_used(wanted(config), config.detector)
    leads = None if itself else Path(config.detector)
    judges = {name: open_detector(path) for name, path in judges_of(config).items()}
    opened = open_corrector(wanted(config), leads and freeze(open_detector(leads)).to(place))
    if judge is None:
        own = {} if leads is None else {ITSELF: open_detector(leads)}
        judge, judge_name = first_detector(judges or own, "--judges")
    draws = plan(prompts_of(config), config.n or (16 if config.prompts is None else None),
                 config.seed)  # fmt: skip
    with Run.start(config, config.out, "treat.correct") as run:
        hold(run, digests(config, leads), begun=any((run.folder / "images").rglob("*.png")))
        if leads is not None and given is None and leads_itself(leads, judges_of(config)):
            run.event(
                "warn",
                "the detector that corrects also judges: give another one as the first of --judges",
            )
        if config.corrector in CALIBRATED and itself and config.calibration is None:
            run.event(
                "warn",
                "score dynamics without a calibration find far too much or too little: "
                "`diffdoctor calibrate` writes one for this base, and --calibration takes it",
            )
        if opened.helps is False:
            run.event("warn", f"{config.calibration} recommends no correction: none was better")
        if opened.calibrated == config.seed:
            run.event(
                "warn",
                f"{config.calibration} was calibrated on seed {config.seed} too: what it promises "
                "of these images it has seen; give another --seed",
            )
        arms = [BASE, config.corrector]
        if not draw_pairs(run, config, opened.make, draws, judge, place):
            return PAUSED
        tables = measure(run, arms, draws, config.batch, reader(judge, flagged, meters, judges))
        summary = summarise(tables, None, config.seed)
        summary |= {"judge": judge_name, **records(run.folder, config, len(draws), opened.window)}
        publish(run, config, summary, first_pairs(run.folder, arms, draws[: config.shown], judge),
                opened.window)  # fmt: skip
    return None


def judges_of(config: Config) -> dict[str, Path]:
    return {name: Path(path) for name, path in named(config.judges).items()}


def leads_itself(leads: Path, judges: Mapping[str, Path]) -> bool:
    """Whether who leads also judges, under whatever name, or is one of an ensemble that does."""
    first = next(iter(judges.values()), leads)
    return not {*digests_of(leads)}.isdisjoint(digests_of(first))


def prompts_of(config: Config) -> list[str]:
    return [""] if config.prompts is None else read_prompts(config.prompts)


def digests(config: Config, leads: Path | None) -> dict[str, str]:
    """Of what the images come from; who judges them may change."""
    found = {"base": of_base(config.base), "prompts": digest(prompts_of(config))}
    if leads is not None:
        found["detector"] = digest([of_detector(leads)])
    if config.calibration is not None:
        found["calibration"] = of_files(config.calibration.parent, [config.calibration])
    if config.real is not None:
        found["real"] = of_real(config.real, captioned=config.prompts is not None)
    return found


def wanted(config: Config) -> Wanted:
    return Wanted(
        config.corrector,
        config.variant,
        config.set,
        config.base,
        config.prompts is not None,
        config.sampling_steps,
        config.height,
        config.width,
        config.seed,
        config.calibration,
        config.real,
        config.detector == UNCERTAINTY,
    )


@torch.no_grad()
def draw_pairs(
    run: Run,
    config: Config,
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
    schedule = model.schedule(config.sampling_steps, config.height, config.width)
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


def records(folder: Path, config: Config, count: int, window: Window) -> dict[str, Any]:
    """Seconds an image, what was changed, and the mean curves."""
    arms = (BASE, config.corrector)
    read = {name: [read_json(record_path(folder, name, i)) for i in range(count)] for name in arms}
    seconds = {name: float(np.median([one["seconds"] for one in read[name]])) for name in arms}
    changed = [one["changed"] for one in read[config.corrector]]
    return {
        "seconds_an_image": seconds,
        "relative_cost": seconds[config.corrector] / seconds[BASE],
        "images_changed": float(np.mean([share > 0 for share in changed])),
        "area_changed": float(np.mean(changed)),
        "window": window._asdict(),
        "acceleration": mean_curves([one["curves"] for one in read[BASE]]),
    }


def publish(
    run: Run, config: Config, summary: dict[str, Any], pairs: Sequence[Pair], window: Window
) -> None:
    """The sheet, the curves, the report and, last, the summary."""
    first = summary["arms"][BASE]
    if pairs:
        picture = sheet(run.folder, pairs, config.corrector)
        write_image(run.folder / "sheet.png", picture)
        write_image(run.pictures / f"step-{first['n']:08d}.png", picture)
    curves = drawing(summary["acceleration"], window, config.sampling_steps)
    if curves:
        write_atomic(run.folder / "acceleration.svg", curves.encode())
    finds = found_by(config.corrector, config.detector, config.variant)
    if not summary["images_changed"]:
        where = "" if finds is None else f" and at what finds ({finds})"
        run.event("warn", f"{config.corrector} changed no image: look at --set{where}")
    note = (
        f"{first['n']} images of {Path(config.base).name} from the same seeds, plainly and with "
        f"{config.corrector}{'' if finds is None else f' ({finds})'}; "
        f"{summary['images_changed']:.0%} of them and "
        f"{summary['area_changed']:.1%} of their area were changed at "
        f"{summary['relative_cost']:.2f} times the cost of plain sampling; judged by "
        f"{summary['judge']}. The pictures below are the first ones, not chosen."
    )
    further = ["<h2>Score acceleration</h2>", curves] if curves else []
    page = render("Before and after correction", note, summary, pairs, further=further)
    write_atomic(run.folder / "report.html", page.encode())
    shown_on = {"report": "report.html", "sheet": "sheet.png" if pairs else None}
    run.summary({**summary, "found_by": finds, **shown_on})


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
