"""Who finds artifacts where they are? Every detector's map of the same images, and the exact one.

    diffdoctor detector train --data runs/labelled --loss binary --out runs/pal
    diffdoctor detector train-highlighter --data runs/labelled --out runs/highlighter
    python -m benchmarks.localisation --base sdxl --out runs/localisation --detectors \\
        segformer=miniature/detectors/sdxl pal=runs/pal highlighter=runs/highlighter

A miniature base draws held-out prompts; the oracle's masks are the truth. Rows: ASCED's score
dynamics (`paper` and `code`), BayesDiff's variance (both read the sampling itself), and every
detector that is named. Columns: average precision over all pixels, IoU at the threshold that is
best for all images together and at the default .5, all and by category; and how many hotspots meet
a flaw, how many flaws a hotspot, beside what shifted and shuffled maps would. OUT/summary.json,
OUT/table.md, OUT/sheet.png (the first images). The same command goes on where it stopped.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

import core.config
from base_models.load import load_base, reads_prompts
from base_models.sample import decode
from benchmarks.localisation_figures import (
    Counts,
    best_threshold,
    hotspot_figures,
    pixel_figures,
)
from core.contracts import ArtifactMap, Detector, DiffusionModel, Images
from core.heatmap import overlay
from core.images import contact_sheet, from_uint8, round_to_8bit, write_image
from core.inputs import hold
from core.run import PAUSED, Run
from core.storage import write_atomic
from detector.bayes import Uncertainty
from detector.last_layer import Laplace
from detector.measure import device
from detector.score_dynamics import ScoreDynamics, Variant, Window, check_window
from detector.segformer import freeze
from detector.storage import open_detector
from miniature.bases import base_folder
from miniature.law import CATEGORIES, SIZE
from miniature.meters import Bench
from miniature.prompts import balanced, category_of, split
from miniature.render import render_samples
from miniature.unprompted import Unprompted
from treat.arms import Draw, encode, named, plan
from treat.cache import digest
from treat.correctors.calibration import Calibration, read_calibration
from treat.correctors.moment import asked_again
from treat.correctors.opening import FITTED, fit
from treat.correctors.sampling import draw_corrected
from treat.inputs import of_base, of_detector, of_files
from treat.offline import RealImages
from treat.step import Chain

OWN = PAPER, X0, CODE, BAYES = "ASCED paper", "ASCED x0", "ASCED code", "BayesDiff"
TRUTH, CATEGORY, IMAGE = "truth", "category", "image"
"""Names in a batch's file, beside those of the rows."""
SHOWN = 10
Truth = Callable[[Images, Sequence[str]], tuple[ArtifactMap, Sequence[str]]]
"""Masks, and each image's category."""


class Config(core.config.Config):
    """Which images, and who looks at them."""

    base: str = "sdxl"
    """A base of the miniature by name, or its pipeline folder; with prompts or without."""
    detectors: tuple[str, ...] = ()
    """NAME=PATH of further detectors, of any kind."""
    calibrations: tuple[Path, ...] = ()
    """What `diffdoctor calibrate` found for the base: window, tau and score bank of a variant."""
    out: Path = Path("runs/localisation")
    """Run folder; the same command again takes up where it stopped."""
    n: int = Field(500, ge=5)
    """Images."""
    seed: int = 11
    """Of the images."""
    sampling_steps: int = Field(25, ge=8)
    """Score dynamics need about 20."""
    batch: int = Field(25, ge=1)
    """Images drawn and looked at once."""
    resamples: int = Field(2000, ge=100)
    """Of the intervals."""
    device: str = "auto"
    """Where the base model and the detectors run."""


class Lookers(NamedTuple):
    """Everything that looks at a sampling or its images."""

    model: DiffusionModel
    laplace: Laplace
    detectors: Mapping[str, Detector]
    calibrations: Mapping[str, Calibration]
    """By variant."""


def main(config: Config) -> int | None:
    base, place = base_folder(config.base), device(config.device)
    check_window(Window(), config.sampling_steps)
    calibrations = [read_calibration(path, str(base), config.sampling_steps)
                    for path in config.calibrations]  # fmt: skip
    known = {one.variant: one for one in calibrations}
    paths = {name: Path(path) for name, path in named(config.detectors).items()}
    detectors = {name: freeze(open_detector(path)).to(place) for name, path in paths.items()}
    prompted = reads_prompts(str(base))
    draws = planned(config, prompted)
    with Run.start(config, config.out, "benchmarks.localisation") as run:
        found = {name: digest([of_detector(path)]) for name, path in paths.items()}
        found |= {f"calibration {path}": of_files(path.parent, [path])
                  for path in config.calibrations}  # fmt: skip
        hold(run, found | {"base": of_base(str(base))}, begun=(run.folder / "maps").is_dir())
        missing = [at for at in range(0, len(draws), config.batch) if not file_of(run, at).exists()]
        if missing:
            model = load_base(str(base))
            text = encode(model, draws, str(place))
            model.to(place)
            laplace = fit(model, sound(prompted, config.seed), config.sampling_steps, SIZE, SIZE,
                          config.seed)  # fmt: skip
            lookers = Lookers(model, laplace, detectors, known)
            for at in run.progress(missing, len(missing), description="look"):
                if run.interrupted:
                    return PAUSED
                rows = slice(at, at + config.batch)
                own = {name: part[rows].to(place) for name, part in text.items()}
                found = look(lookers, own, draws[rows], config.sampling_steps, truth_of(prompted))
                write_atomic(file_of(run, at), safetensors.torch.save(found))
        seen, rows = gathered(run, range(0, len(draws), config.batch)), [*OWN, *detectors]
        figures = measured(seen, rows, config.resamples, config.seed)
        write_image(run.folder / "sheet.png", sheet(seen, rows))
        text = markdown(figures)
        write_atomic(run.folder / "table.md", text.encode())
        run.summary(figures)
    print(text)
    return None


def planned(config: Config, prompted: bool) -> list[Draw]:
    prompts = balanced(split()["held_out"], config.n, config.seed) if prompted else [""]
    return plan(prompts, config.n, config.seed)


def file_of(run: Run, at: int) -> Path:
    folder = run.folder / "maps"
    folder.mkdir(exist_ok=True)
    return folder / f"{at:06d}.safetensors"


def sound(prompted: bool, seed: int) -> RealImages:
    """Valid renders, on which BayesDiff's last layer is fitted."""
    samples = render_samples(FITTED, seed, prompts=split()["train"])
    captions = [sample.record.prompt if prompted else "" for sample in samples]
    return RealImages(captions, lambda i: from_uint8(samples[i].image[None]), "renders")


def truth_of(prompted: bool) -> Truth:
    """The oracle: under the category that a prompt names, or the one that is least flawed."""
    if prompted:
        judge = Bench().judge
        return lambda images, said: (judge(images, said), [category_of(one) for one in said])
    oracle = Unprompted()
    return lambda images, said: (
        oracle.judge(images, said),
        list(oracle.meters(images, said)["category"]),
    )


@torch.no_grad()
def look(
    lookers: Lookers, text: dict[str, Tensor], draws: Sequence[Draw], steps: int, truth: Truth
) -> dict[str, Tensor]:
    """Images of one batch, every row's map of them, the exact mask, and the categories."""
    model, seeds = lookers.model, [draw.seed for draw in draws]
    chain = Chain(model, model.schedule(steps, SIZE, SIZE), text)
    drawn = draw_corrected(chain, model.noise(seeds, SIZE, SIZE), seeds, None)
    images = round_to_8bit(decode(model, drawn.latents, chain.precision))
    way = drawn.trajectory

    def dynamics(variant: Variant) -> ScoreDynamics:
        known = lookers.calibrations.get(variant)
        if known is None:
            return ScoreDynamics(way, chain.decode, variant)
        window = Window(t_d=known.t_d)
        return ScoreDynamics(way, chain.decode, variant, window, known.bank, known.factor)

    rows: dict[str, Detector] = {
        PAPER: dynamics("paper"),
        X0: dynamics("x0"),
        CODE: dynamics("code"),
        BAYES: Uncertainty(way, asked_again(chain, seeds), lookers.laplace),
        **lookers.detectors,
    }
    found = {name: row(images).float().cpu()[:, 0].contiguous() for name, row in rows.items()}
    masks, names = truth(images.cpu(), [draw.prompt for draw in draws])
    places = [list(CATEGORIES).index(name) for name in names]
    return found | {
        TRUTH: (masks[:, 0] > 0.5).to(torch.uint8),
        CATEGORY: torch.tensor(places),
        IMAGE: images.cpu().mul(255).round().byte(),
    }


def gathered(run: Run, starts: Sequence[int]) -> dict[str, Tensor]:
    """All batches of a finished looking."""
    parts = [safetensors.torch.load_file(file_of(run, at)) for at in starts]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def measured(
    seen: Mapping[str, Tensor], rows: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """What the images are, and every row's figures."""
    truth, groups = seen[TRUTH].bool(), [list(CATEGORIES)[i] for i in seen[CATEGORY]]
    names = np.array(groups)
    kinds = {"all": np.ones(len(names), bool)}
    kinds |= {one: names == one for one in CATEGORIES if (names == one).any()}
    masks = {kind: truth[torch.from_numpy(chosen)] for kind, chosen in kinds.items()}
    found: dict[str, Any] = {
        "images": {kind: len(own) for kind, own in masks.items()},
        "flawed_images": {k: int(own.flatten(1).any(1).sum()) for k, own in masks.items()},
        "flawed_pixels": {kind: own.double().mean().item() for kind, own in masks.items()},
        "method": f"95 % bootstrap over images, {resamples:,} seeded resamples",
        "rows": {},
    }
    for name in rows:
        maps = seen[name][:, None]
        counts = Counts.of(maps, truth)
        best = best_threshold(counts)
        own = {k: pixel_figures(counts.only(c), best, resamples, seed) for k, c in kinds.items()}
        spots = hotspot_figures(maps, truth, groups, resamples, seed)
        found["rows"][name] = {"best_threshold": best, "pixels": own, "hotspots": spots}
    return found


def markdown(figures: Mapping[str, Any]) -> str:
    """One table of all images, one by category."""
    images, flawed = figures["images"], figures["flawed_images"]
    lines = [
        f"{images['all']} images, {flawed['all']} flawed; {figures['flawed_pixels']['all']:.2%} of "
        f"the pixels, which is the pixel AP of a map that knows nothing. {figures['method']}.",
        "",
        "| | pixel AP | IoU, best (at) | IoU at .5 | hotspots that meet a flaw "
        "| shifted, shuffled | flaws that a hotspot meets | shifted, shuffled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in figures["rows"].items():
        whole, spots = row["pixels"]["all"], row["hotspots"]
        cells = [cell(whole["pixel_ap"])]
        cells += [f"{cell(whole['iou_best'])} ({row['best_threshold']:.2f})"]
        cells += [cell(whole["iou_default"])]
        for kind in ("hotspots_met", "flaws_met"):
            chance = [share(spots.get(f"{kind}_{how}")) for how in ("shifted", "shuffled")]
            cells += [cell(spots.get(kind), percent=True), ", ".join(chance)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    kinds = [kind for kind in images if kind != "all"]
    heads = [f"{k} ({flawed[k]} of {images[k]}, {figures['flawed_pixels'][k]:.1%})" for k in kinds]
    lines += ["", "Pixel AP; IoU at the best threshold of all images, and at .5:", ""]
    lines += [f"| | {' | '.join(heads)} |", "|---" * (len(kinds) + 1) + "|"]
    for name, row in figures["rows"].items():
        cells = [
            f"{cell(own['pixel_ap'])}; {own['iou_best']['value']:.3f}, "
            f"{own['iou_default']['value']:.3f}"
            for own in (row["pixels"][kind] for kind in kinds)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(figure: Mapping[str, Any] | None, percent: bool = False) -> str:
    """A value with its interval; a dash where there is none."""
    if figure is None or figure["value"] != figure["value"]:
        return "-"
    (low, high), form = figure["interval"], ".0%" if percent else ".3f"
    return f"{figure['value']:{form}} [{low:{form}}, {high:{form}}]"


def share(figure: Mapping[str, Any] | None) -> str:
    return "-" if figure is None else f"{figure['value']:.0%}"


def sheet(seen: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """The first images, never chosen ones: the truth and every row's map laid over each."""
    images = seen[IMAGE][:SHOWN].float() / 255
    columns = {"truth": seen[TRUTH][:SHOWN].float()} | {n: seen[n][:SHOWN] for n in names}
    laid = [overlay(images, maps[:, None]) for maps in columns.values()]
    rows = [[images[i], *(column[i] for column in laid)] for i in range(len(images))]
    labels = [list(CATEGORIES)[i] for i in seen[CATEGORY][:SHOWN]]
    heads = ["image", *(name[:11] for name in columns)]
    return contact_sheet(rows, labels, heads)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.localisation")
