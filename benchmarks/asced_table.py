"""ASCED's table in the miniature: ways to draw from the same seeds, against exact truth.

    OMP_NUM_THREADS=1 python -m benchmarks.asced_table --out runs/asced_table

Rows: plain sampling, State Replacement, Score Clipping, BayesDiff, SARGD, PAL + TTC, and ASCED in
its three variants (`detector.score_dynamics`); DDIM, 25 steps. Controls: the masks of two of them
half the image away, and everywhere (`benchmarks.asced_controls`); a gain that they share is not
due to what was found. ASCED is calibrated by a detector on other seeds, and of a base that reads
prompts on other prompts; the Omega of `x0` is State Replacement's too. The numbers of the other
rows are chosen on the same images (`benchmarks.asced_tune`), or the correctors' defaults. The
oracle judges, which no row has seen. FID, KID, precision, recall and coverage are those of the
feature network that `--features` names, against as many sound renders; BayesDiff's last layer is
fitted on others.

All rows draw one batch after the other, in an order that goes round, and what a batch costs is its
process's CPU time. The same command goes on where it stopped. OUT/summary.json, OUT/table.md,
OUT/acceleration.svg; `benchmarks.score_curve` says more of the last.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from pydantic import Field
from rich.console import Console
from rich.markdown import Markdown

import core.config
from base_models.load import FAMILIES, check_base
from base_models.sizes import check_size
from benchmarks.asced_controls import Place, elsewhere
from benchmarks.asced_draw import Plan, draw_rows
from benchmarks.asced_figures import compared, markdown
from benchmarks.asced_tune import Open, kept, tune
from core.errors import UserError
from core.images import write_image
from core.prompts import read_prompts
from core.run import PAUSED, Run, plain
from core.samples import Sample
from core.seeds import mix
from core.storage import read_json, write_atomic
from detector.features import open_features
from detector.measure import device
from detector.score_dynamics import Variant, Window
from detector.segformer import freeze
from detector.storage import open_detector
from miniature import listing, meters, unprompted
from miniature.bases import DETECTORS, SHIPPED, base_folder
from miniature.law import CATEGORIES, SIZE, all_prompts
from miniature.prompts import balanced, split
from miniature.render import render_samples
from miniature.stages import SHARES
from treat import calibrate
from treat.arms import BASE, Draw, plan
from treat.correct_draw import record_path
from treat.correctors.acceleration import drawing, mean_curves
from treat.correctors.asced import Asced
from treat.correctors.opening import FITTED, Opened, Wanted, open_corrector
from treat.evaluate import first_detector, reader

TUNED = "tuned.json"
FEATURES = SHIPPED.parent / "features"
REAL = 151
FITS = 152
"""What a draw is for; see `core.seeds`."""
VARIANTS: tuple[Variant, ...] = ("paper", "x0", "code")
RowName = Literal["state_replacement", "score_clipping", "bayes", "sargd", "pal_ttc", "asced",
                  "asced_x0", "asced_code", "asced_shifted", "asced_x0_shifted",
                  "asced_everywhere"]  # fmt: skip


class Row(NamedTuple):
    title: str
    corrector: str
    variant: Variant = "paper"
    calibrated: bool = False
    """Takes ASCED's Omega."""
    led: bool = False
    """By a detector."""
    control: Place | None = None
    """Where it mends instead."""


ROWS: dict[str, Row] = {
    "state_replacement": Row("State Replacement", "state_replacement", "x0", calibrated=True),
    "score_clipping": Row("Score Clipping", "score_clipping"),
    "bayes": Row("BayesDiff", "bayes"),
    "sargd": Row("SARGD", "sargd", led=True),
    "pal_ttc": Row("PAL + TTC", "trajectory", led=True),
    "asced": Row("ASCED (paper)", "asced", "paper", calibrated=True),
    "asced_x0": Row("ASCED (x0-hat)", "asced", "x0", calibrated=True),
    "asced_code": Row("ASCED (code)", "asced", "code", calibrated=True),
    "asced_shifted": Row(
        "control: paper's mask, half the image away", "asced", "paper", True, control="shifted"
    ),
    "asced_x0_shifted": Row(
        "control: x0-hat's mask, half the image away", "asced", "x0", True, control="shifted"
    ),
    "asced_everywhere": Row("control: everywhere", "asced", "x0", True, control="everywhere"),
}


class Config(core.config.Config):
    """Which base, and how much of everything."""

    out: Path = Path("runs/asced_table")
    """Run folder; the same command again takes up where it stopped."""
    base: str = "sdxl"
    """A base of the miniature by name, or a pipeline folder."""
    rows: tuple[RowName, ...] = Field(tuple(ROWS), min_length=1)  # type: ignore[arg-type]
    """Beside plain sampling."""
    images: int = Field(2000, ge=4)
    """Of every row; as many renders are the real ones."""
    sampling_steps: int = Field(25, ge=20)
    """The paper's 25; dynamics need about 20."""
    batch: int = Field(25, ge=1)
    """Images drawn and judged at once."""
    leads: Path | None = None
    """Detector that SARGD and PAL + TTC follow; by default the base's own, else `first`."""
    calibrates: Path = DETECTORS / "second"
    """Detector that judges while ASCED is calibrated."""
    calibration_images: int = Field(64, ge=2)
    """On which ASCED is calibrated and the other rows' numbers are chosen."""
    features: str = str(FEATURES)
    """As of `diffdoctor compare`."""
    resamples: int = Field(200, ge=0)
    """Of FID's intervals."""
    seed: int = Field(0, ge=0)
    """Of images and renders; calibration has the next one."""
    device: str = "auto"
    """`auto`, or a torch device; on a GPU the cost is that of the clock on the wall."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


class Asked(NamedTuple):
    """The base, and what it is asked to draw."""

    base: str
    prompted: bool
    draws: list[Draw]
    leads: Path


def main(config: Config) -> int | None:
    asked, network = ask(config), open_features(config.features).to(device(config.device))
    if asked.prompted:
        oracle, judge = meters.Bench(), meters.NAME
    else:
        oracle, judge = unprompted.Unprompted(), unprompted.NAME
    read = reader(oracle.judge, oracle.flagged, oracle.meters, {})
    with Run.start(config, config.out, "benchmarks.asced_table", may_change={"json_file"}) as run:
        write_real(run.folder / "real", asked, config, config.images, REAL)
        write_real(run.folder / "fits", asked, config, FITTED, FITS)
        calibrated(run.folder, asked, config)
        opener = partial(open_row, run.folder, asked, config)
        tune_rows(run.folder, asked, config, opener)
        opened = {name: opener(name, kept(run.folder / TUNED, name)) for name in config.rows}
        work = Plan(asked.base, asked.draws, config.sampling_steps, config.batch, config.device)
        if not draw_rows(run, work, {name: one.make for name, one in opened.items()}, read):
            return PAUSED
        names = [BASE, *config.rows]
        found = compared(run.folder, names, network, config.resamples, config.seed)
        windows = [opened[name].window for name in ("asced_x0", *config.rows) if name in opened]
        found |= {"judge": judge, **described(run.folder, asked, config, windows)}
        publish(run, found, config)
    return None


def ask(config: Config) -> Asked:
    """Everything that can be wrong, before anything is made."""
    base = base_folder(config.base)
    check_size(str(base), SIZE, SIZE)
    prompted = FAMILIES[check_base(base)].prompted
    own = DETECTORS / base.name
    leads = config.leads or (own if own.is_dir() else DETECTORS / "first")
    for folder in (leads, config.calibrates):
        open_detector(folder)
    if leads.resolve() == config.calibrates.resolve():
        raise UserError("the detector that leads also calibrates: name another --calibrates.")
    said = balanced(split()["held_out"], config.images, config.seed) if prompted else [""]
    return Asked(str(base), prompted, plan(said, config.images, config.seed), leads)


def write_real(folder: Path, asked: Asked, config: Config, n: int, purpose: int) -> None:
    """Sound renders of what the base draws, with captions; the categories mixed in their order."""
    samples = real_samples(asked, n, mix(config.seed, purpose) % 2**32)
    lines = [{"file": f"{i:06d}.png", "prompt": one.record.prompt}
             for i, one in enumerate(samples)]  # fmt: skip
    for i in listing.claim(folder, lines):
        image = torch.from_numpy(samples[i].image).permute(2, 0, 1) / 255
        write_image(folder / "images" / lines[i]["file"], image)
    listing.write_captions(folder, lines)


def real_samples(asked: Asked, n: int, seed: int) -> list[Sample]:
    """As the prompts say, or in the shares in which a base without prompts was taught."""
    if asked.prompted:
        return render_samples(n, seed, prompts=split()["held_out"])
    placed = []
    for number, name in enumerate(CATEGORIES):
        own = [prompt for prompt, (category, _) in all_prompts().items() if category == name]
        count = max(1, round(SHARES[name] * n))
        samples = render_samples(count, seed + number, prompts=own)
        placed += [((i + 0.5) / count, number, one) for i, one in enumerate(samples)]
    return [one for _, _, one in sorted(placed, key=lambda each: each[:2])]


def calibrated(folder: Path, asked: Asked, config: Config) -> None:
    """Every variant of ASCED, each once."""
    prompts = folder / "search.txt" if asked.prompted else None
    seed = config.seed + 1
    if prompts is not None:
        said = balanced(split()["search"], config.calibration_images, seed)
        write_atomic(prompts, ("\n".join(said) + "\n").encode())
    for variant in VARIANTS:
        path = calibration_of(folder, variant)
        if not path.exists():
            given = {
                "base": asked.base,
                "out": path,
                "variant": variant,
                "judges": (f"second={config.calibrates}",),
                "prompts": prompts,
                "n": config.calibration_images,
                "seed": seed,
                "sampling_steps": config.sampling_steps,
                "height": SIZE,
                "width": SIZE,
                "batch": config.batch,
                "device": config.device,
            }
            calibrate.main(calibrate.Config.model_validate(given))


def calibration_of(folder: Path, variant: str) -> Path:
    return folder / f"calibration-{variant}.json"


def tune_rows(folder: Path, asked: Asked, config: Config, opener: Open) -> None:
    """On the images that ASCED was calibrated on, by the same detector."""
    path = folder / "search.txt"
    draws = plan(read_prompts(path) if asked.prompted else [""], config.calibration_images,
                 config.seed + 1)  # fmt: skip
    work = Plan(asked.base, draws, config.sampling_steps, config.batch, config.device)
    judge, _ = first_detector({"second": open_detector(config.calibrates)})
    tune(folder / TUNED, config.rows, work, opener, judge)


def open_row(folder: Path, asked: Asked, config: Config, name: str, words: Sequence[str]) -> Opened:
    """The corrector of a row with its numbers."""
    row = ROWS[name]
    own = calibration_of(folder, row.variant)
    wanted = Wanted(
        row.corrector,
        row.variant,
        words,
        asked.base,
        asked.prompted,
        config.sampling_steps,
        SIZE,
        SIZE,
        config.seed,
        own if row.calibrated else None,
        folder / "fits/images",
    )
    leads = freeze(open_detector(asked.leads)).to(device(config.device)) if row.led else None
    opened, control = open_corrector(wanted, leads), row.control
    if control is None:
        return opened
    return opened._replace(make=lambda model: elsewhere(cast(Asced, opened.make(model)), control))


def described(folder: Path, asked: Asked, config: Config, windows: Sequence[Window]) -> dict:
    """What the figures are of, and the curves of plain sampling, its phases parted as for ASCED."""
    count = len(asked.draws)
    records = [read_json(record_path(folder, BASE, i)) for i in range(count)]
    return {
        "base": asked.base,
        "images": count,
        "sampling_steps": config.sampling_steps,
        "seed": config.seed,
        "leads": str(asked.leads),
        "calibrates": str(config.calibrates),
        "calibration": {
            variant: read_json(calibration_of(folder, variant)) for variant in VARIANTS
        },
        "tuned": read_json(folder / TUNED),
        "window": windows[0]._asdict(),
        "acceleration": mean_curves([one["curves"] for one in records]),
    }


def publish(run: Run, found: dict[str, Any], config: Config) -> None:
    """The table in both forms, the curves, the summary last."""
    said = markdown(found, {BASE: "Original", **{name: ROWS[name].title for name in config.rows}})
    write_atomic(run.folder / "table.md", said.encode())
    window = Window(**found["window"])
    curves = drawing(found["acceleration"], window, config.sampling_steps)
    if curves:
        write_atomic(run.folder / "acceleration.svg", curves.encode())
    if config.json_file is not None:
        text = json.dumps(plain(found), indent=2) + "\n"
        write_atomic(config.json_file, text.encode())
    run.summary(found)
    Console(width=max(160, Console().width)).print(Markdown(said))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.asced_table")
