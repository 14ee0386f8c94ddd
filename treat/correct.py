"""A base model and a corrector in; its images before and after from the same seeds, compared, out.

    diffdoctor correct --base BASE --corrector asced --prompts held_out.txt --out runs/asced

OUT/images/base/*.png and OUT/images/NAME/*.png (the same prompts and noise), OUT/masks/*.png (what
was corrected), OUT/sheet.png, OUT/acceleration.svg, OUT/report.html, OUT/summary.json. The same
command goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from base_models.load import check_prompts
from base_models.sizes import check_steps, checked_size, of_size
from core.errors import UserError
from core.images import write_image
from core.inputs import hold
from core.prompts import read_prompts
from core.run import PAUSED, Run
from core.storage import read_json, write_atomic
from detector.combine import digests_of
from detector.measure import device
from detector.score_dynamics import Window
from detector.segformer import freeze
from detector.storage import open_detector
from treat.arms import BASE, named, plan
from treat.cache import digest
from treat.correct_draw import draw_pairs, record_path, sheet
from treat.correct_settings import Config
from treat.correctors.acceleration import drawing, mean_curves
from treat.correctors.opening import (
    CALIBRATED,
    Wanted,
    check_used,
    found_by,
    open_corrector,
)
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

ITSELF = "itself"


def main(
    config: Config,
    judge: Judge | None = None,
    meters: Meters | None = None,
    flagged: Flagged | None = None,
    judge_name: str = "a judge given by the caller",
) -> int | None:
    """Draw both arms, judge, compare, report; see `treat.evaluate.main` for the judge."""
    size = checked_size(config.base, config.height, config.width)
    config = of_size(config, size)
    check_steps(config.base, config.sampling_steps)
    check_prompts(config.base, config.prompts is not None)
    place, given = device(config.device), judge
    itself = config.detector in (DYNAMICS, UNCERTAINTY)
    asked = wanted(config, size)
    check_used(asked, config.detector)
    leads = None if itself else folder_of(config.detector)
    judges = {name: open_detector(path) for name, path in judges_of(config).items()}
    opened = open_corrector(asked, leads and freeze(open_detector(leads)).to(place))
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
        if not draw_pairs(run, config, size, opened.make, draws, judge, place):
            return PAUSED
        tables = measure(run, arms, draws, config.batch, reader(judge, flagged, meters, judges))
        summary = summarise(tables, None, config.seed)
        summary |= {"judge": judge_name, **records(run.folder, config, len(draws), opened.window)}
        publish(run, config, summary, first_pairs(run.folder, arms, draws[: config.shown], judge),
                opened.window)  # fmt: skip
    return None


def folder_of(detector: str) -> Path:
    """`UserError` for a word that is neither a folder nor what finds without one."""
    path = Path(detector)
    close = get_close_matches(detector, (DYNAMICS, UNCERTAINTY), n=1)
    if not path.exists() and close:
        raise UserError(f"{detector} is no folder; did you mean {close[0]}?")
    return path


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


def wanted(config: Config, size: tuple[int, int]) -> Wanted:
    return Wanted(
        config.corrector,
        config.variant,
        config.set,
        config.base,
        config.prompts is not None,
        config.sampling_steps,
        *size,
        config.seed,
        config.calibration,
        config.real,
        config.detector == UNCERTAINTY,
    )


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
    run.event("info", f"report.html, sheet.png and summary.json are in {run.folder}")
