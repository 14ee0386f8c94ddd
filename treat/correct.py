"""A base model and a corrector in; its images before and after from the same seeds, compared, out.

    diffdoctor correct --base BASE --corrector asced --prompts held_out.txt --out runs/asced

OUT/images/base/*.png and OUT/images/NAME/*.png (the same prompts and noise), OUT/masks/*.png (what
was corrected), OUT/sheet.png, OUT/acceleration.svg, OUT/report.html, OUT/summary.json. The same
command goes on where it stopped.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from base_models.load import check_prompts, check_size, load_base
from base_models.sample import decode
from core.config import Config as BaseConfig
from core.contracts import DiffusionModel
from core.heatmap import Map, overlay, write_map
from core.images import Picture, contact_sheet, read_images, round_to_8bit, write_image
from core.prompts import read_prompts
from core.run import PAUSED, Run
from core.storage import read_json, write_atomic
from detector.measure import device
from detector.score_dynamics import Variant, Window
from detector.segformer import freeze
from detector.storage import open_detector
from treat.arms import BASE, Draw, encode, image_path, named, plan
from treat.correctors.acceleration import drawing, mean_curves, region_curves, shown_mask
from treat.correctors.moment import Corrector
from treat.correctors.opening import Wanted, open_corrector
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
from treat.report import Pair, render
from treat.step import Chain

DYNAMICS = "score_dynamics"
ITSELF = "itself"
Name = Literal[
    "asced", "state_replacement", "score_clipping", "bayes", "sargd", "trajectory", "guide"
]


class Config(BaseConfig):
    """Same prompts, same seeds: a base model's images before and after a corrector."""

    base: str
    """Pipeline folder or Hub id of the base model; of any family, with prompts or without."""
    corrector: Name = "asced"
    """What corrects: `asced`; its table's baselines `state_replacement`, `score_clipping`, `bayes`
    (BayesDiff), `sargd` and `trajectory` (PAL + TTC); `guide` (DIAMOND). docs/sister_methods.md
    says what each does."""
    detector: str = DYNAMICS
    """What finds: `score_dynamics` (nothing is trained), or a detector's folder. `sargd`,
    `trajectory` and `guide` need a folder; `score_clipping` needs none."""
    variant: Variant = "paper"
    """asced and score_dynamics: as the paper has it, or as its released code does."""
    set: tuple[str, ...] = ()
    """The corrector's own numbers, NAME=VALUE each (gamma=0.7 t_d=0.9)."""
    calibration: Path | None = None
    """asced: T_d, gamma and the score bank, as `diffdoctor calibrate` found them."""
    real: Path | None = None
    """bayes: real images that its last layer is fitted on; with captions (`treat --offline`) where
    the base reads prompts."""
    judges: tuple[str, ...] = ()
    """Detectors that read the images, NAME=PATH each; the first judges. Without one, --detector
    judges itself, which flatters it."""
    prompts: Path | None = None
    """Prompts: .txt (one a line), or .jsonl, .csv or .parquet with `prompt`. None for a base that
    reads none."""
    out: Path = Path("runs/correct")
    """Run folder; the same command again takes up where it stopped."""
    n: int | None = Field(default=None, ge=2)
    """Images (default: one for every prompt, 16 without prompts); prompts repeat with new seeds."""
    seed: int = 0
    """Image i is drawn with seed hash(seed, i)."""
    sampling_steps: int = Field(default=25, ge=2)
    """Sampler steps; the paper's 25."""
    height: int = Field(default=512, ge=1)
    """Pixels."""
    width: int = Field(default=512, ge=1)
    """Pixels."""
    batch: int = Field(default=8, ge=1)
    """Images drawn and judged at once."""
    shown: int = Field(default=12, ge=0)
    """Pairs in the report and on the sheet: always the first ones, never chosen."""
    device: str = "auto"
    """Where the base model runs: `auto`, or a torch device."""


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
    place = device(config.device)
    leads = None if config.detector == DYNAMICS else Path(config.detector)
    judges = {name: open_detector(Path(path)) for name, path in named(config.judges).items()}
    opened = open_corrector(wanted(config), leads and freeze(open_detector(leads)).to(place))
    if judge is None:
        own = {} if leads is None else {ITSELF: open_detector(leads)}
        judge, judge_name = first_detector(judges or own, "--judges")
    draws = plan(prompts_of(config), config.n or (16 if config.prompts is None else None),
                 config.seed)  # fmt: skip
    with Run.start(config, config.out, "treat.correct") as run:
        if judge_name.startswith(f"detector {ITSELF},"):
            run.event("warn", "the detector that corrects also judges: give --judges NAME=FOLDER")
        for name in (BASE, config.corrector):
            arm = None if name == BASE else opened.make
            if not draw_arm(run, config, name, arm, draws, judge, str(place)):
                return PAUSED
        arms = [BASE, config.corrector]
        tables = measure(run, arms, draws, config.batch, reader(judge, flagged, meters, judges))
        summary = summarise(tables, None, config.seed)
        summary |= {"judge": judge_name, **records(run.folder, config, len(draws), opened.window)}
        publish(run, config, summary, first_pairs(run.folder, arms, draws[: config.shown], judge),
                opened.window)  # fmt: skip
    return None


def prompts_of(config: Config) -> list[str]:
    return [""] if config.prompts is None else read_prompts(config.prompts)


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
    )


@torch.no_grad()
def draw_arm(
    run: Run,
    config: Config,
    name: str,
    make: Callable[[DiffusionModel], Corrector] | None,
    draws: Sequence[Draw],
    judge: Judge,
    place: str,
) -> bool:
    """Draw the images of one arm that are not there yet; False where the run was asked to stop.

    Beside each image its record: seconds, what was changed, and of the base the dynamics.
    """
    folder = run.folder / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(len(draws)) if not image_path(run.folder, name, i).exists()]
    if not missing:
        return True
    model = load_base(config.base)
    text = encode(model, draws, place)
    model.to(place)
    corrector = None if make is None else make(model)
    model.drop_text_encoders()
    schedule = model.schedule(config.sampling_steps, config.height, config.width)
    for at in run.progress(range(0, len(missing), config.batch), description=name):
        if run.interrupted:
            return False
        rows = missing[at : at + config.batch]
        seeds = [draws[i].seed for i in rows]
        chain = Chain(model, schedule, {n: part[rows].to(place) for n, part in text.items()})
        begun = time.perf_counter()
        noise = model.noise(seeds, config.height, config.width)
        drawn = draw_corrected(chain, noise, seeds, corrector)
        images = round_to_8bit(decode(model, drawn.latents, chain.precision)).cpu()
        seconds = (time.perf_counter() - begun) / len(rows)
        curves: list[dict[str, Any]] = [{} for _ in rows]
        if corrector is None:
            curves = region_curves(drawn.trajectory, judge(images, [draws[i].prompt for i in rows]))
        masks = shown_mask(drawn.mask, images)
        for i, image, mask, curve in zip(rows, images, masks, curves, strict=True):
            record = {"seconds": seconds, "changed": mask.mean().item(), "curves": curve}
            keep(run.folder, name, i, image, mask, record)
    return True


def keep(
    folder: Path, arm: str, index: int, image: Picture, mask: Map, record: dict[str, Any]
) -> None:
    """The image last: one that is there has its record and, but in the base's arm, its mask."""
    write_atomic(record_path(folder, arm, index), json.dumps(record).encode())
    if arm != BASE:
        write_map(mask_path(folder, index), mask)
    write_image(image_path(folder, arm, index), image)


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
    if pairs:
        write_image(run.folder / "sheet.png", sheet(run.folder, pairs, config.corrector))
    curves = drawing(summary["acceleration"], window, config.sampling_steps)
    if curves:
        write_atomic(run.folder / "acceleration.svg", curves.encode())
    first = summary["arms"][BASE]
    note = (
        f"{first['n']} images of {Path(config.base).name} from the same seeds, plainly and with "
        f"{config.corrector} ({config.detector}); {summary['images_changed']:.0%} of them and "
        f"{summary['area_changed']:.1%} of their area were changed at "
        f"{summary['relative_cost']:.2f} times the cost of plain sampling; judged by "
        f"{summary['judge']}. The pictures below are the first ones, not chosen."
    )
    further = ["<h2>Score acceleration</h2>", curves] if curves else []
    page = render("Before and after correction", note, summary, pairs, further=further)
    write_atomic(run.folder / "report.html", page.encode())
    run.summary({**summary, "report": "report.html", "sheet": "sheet.png" if pairs else None})


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
