"""A base model, a variant of ASCED and a judge in; T_d, tau's factor, gamma and a score bank out.

    diffdoctor calibrate --base BASE --prompts search.txt --judges second=DETECTOR --out asced.json

The paper leaves T_d and gamma to its supplement. Here plain images are drawn once: the bank is the
mean of their dynamics, and T_d (with tau's factor) is where Omega overlaps most with what the
judge sees in the finished images. Then the same images are corrected with every gamma. A small one
wipes images out, and their artifacts with them: of those that keep the variety of plain sampling
the one that leaves the least artifact area is kept. Where there is none, or it leaves no less than
plain sampling, it says so: no correction is the better one. `diffdoctor correct --calibration
asced.json` reads it. Calibrate on other prompts or seeds, and by another judge, than those that are
reported.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from base_models.load import check_prompts, load_base
from base_models.sample import decode
from base_models.sizes import check_steps, checked_size
from base_models.trajectory import Trajectory
from core.config import Config as BaseConfig
from core.contracts import ArtifactMap, DiffusionModel, Images
from core.errors import UserError
from core.images import round_to_8bit
from core.prompts import read_prompts
from core.storage import check_file
from detector.measure import device
from detector.score_dynamics import (
    ScoreDynamics,
    Variant,
    Window,
    check_window,
    dynamics,
    mean_dynamics,
)
from detector.storage import open_detector
from treat.arms import Draw, encode, named, plan
from treat.correctors.asced import Asced
from treat.correctors.calibration import Calibration, write_calibration
from treat.correctors.find import ByDynamics
from treat.correctors.moment import Corrector
from treat.correctors.sampling import Drawn, draw_corrected
from treat.evaluate import Judge, first_detector
from treat.inputs import of_base
from treat.step import Chain

KEPT = 0.8
"""Share of plain sampling's variety that a gamma must keep. A flawed base is more varied than sound
images are, which of the miniature's LDM keep 0.86; images that are wiped out keep a quarter."""
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Config(BaseConfig):
    """What ASCED's paper leaves open, found for one base and number of steps."""

    base: str
    """Pipeline folder or Hub id of the base model."""
    out: Path
    """The file to write (.json)."""
    variant: Variant = "paper"
    """`paper`, `x0` or `code`; of `code` only T_d is found, and whether it helps."""
    judges: tuple[str, ...] = ()
    """NAME=PATH of the detector that says what an artifact is."""
    prompts: Path | None = None
    """Prompts to calibrate on; None for a base that reads none."""
    n: int = Field(default=64, ge=2)
    """Images."""
    seed: int = 1
    """Other than the one that is reported."""
    sampling_steps: int = Field(default=25, ge=2)
    """Of the base; what is found holds for these."""
    height: int | None = Field(default=None, ge=1)
    """Of what is drawn, in pixels. None: the base's own."""
    width: int | None = Field(default=None, ge=1)
    """Of what is drawn, in pixels. None: the base's own."""
    batch: int = Field(default=8, ge=1)
    """Images drawn at once."""
    t_d: tuple[Share, ...] = Field((1.0, 0.9, 0.8, 0.7, 0.6), min_length=1)
    """T_d / T to try."""
    factor: tuple[Positive, ...] = Field((1.0, 1.5, 2.0, 3.0), min_length=1)
    """tau over the paper's, to try; 1 is the paper's."""
    gamma: tuple[Positive, ...] = Field((0.25, 0.5, 0.75, 1.0), min_length=1)
    """gamma to try."""
    device: str = "auto"
    """`auto`, or a torch device."""


def main(config: Config, judge: Judge | None = None) -> None:
    """Draw plainly, choose T_d; draw with every gamma, choose; write."""
    if config.out.suffix != ".json":
        raise UserError(f"--out {config.out} is no .json file: name one.")
    check_file(config.out)
    size = checked_size(config.base, config.height, config.width)
    check_steps(config.base, config.sampling_steps)
    check_prompts(config.base, config.prompts is not None)
    for t_d in config.t_d:
        check_window(Window(t_d=t_d), config.sampling_steps)
    if judge is None:
        known = {name: open_detector(Path(path)) for name, path in named(config.judges).items()}
        judge, _ = first_detector(known, "--judges")
    prompts = [""] if config.prompts is None else read_prompts(config.prompts)
    draws, place = plan(prompts, config.n, config.seed), str(device(config.device))
    model = load_base(config.base)
    text = encode(model, draws, place)
    model.drop_text_encoders()
    model.to(place)
    walked, images = _walk(config, model, size, text, draws, None, "plain")
    seen = _judged(judge, images, draws, config.batch)
    bank = mean_dynamics(torch.cat([dynamics(one, config.variant) for one in walked], dim=1))
    overlaps = [_overlap(config, model, walked, images, seen, bank, *one) for one in _pairs(config)]
    best = max(overlaps, key=lambda one: one["iou"])
    plain = {"gamma": None, "area": _area(seen), "variety": variety(images)}
    tried: list[dict[str, Any]] = []
    for value in config.gamma if config.variant != "code" else (1.0,):
        find = ByDynamics(config.variant, bank, best["factor"])
        corrector = Asced(find, config.variant, t_d=best["t_d"], gamma=value)
        _, mended = _walk(config, model, size, text, draws, corrector, f"gamma {value:g}")
        area = _area(_judged(judge, mended, draws, config.batch))
        tried.append({"gamma": value, "area": area, "variety": variety(mended)})
    best_gamma = chosen(tried, plain)
    found = Calibration(
        base=config.base,
        digest=of_base(config.base),
        steps=config.sampling_steps,
        variant=config.variant,
        bank=bank,
        factor=best["factor"],
        t_d=best["t_d"],
        gamma=best_gamma["gamma"],
        images=len(draws),
        seed=config.seed,
        height=size[0],
        width=size[1],
        helps=varied(best_gamma, plain) and best_gamma["area"] < plain["area"],
        tried=[*overlaps, plain, *tried],
    )
    write_calibration(config.out, found)
    Console().print(_table(found))
    if not found.helps:
        print(
            f"no correction is recommended: the best leaves {best_gamma['area']:.2%} of artifact "
            f"area and {best_gamma['variety'] / plain['variety']:.0%} of the variety, plain "
            f"sampling {plain['area']:.2%}."
        )


def variety(images: Images) -> float:
    """Standard deviation of a pixel over the images, the mean of all pixels and colours."""
    return images.std(dim=0).mean().item()


def varied(one: Mapping[str, Any], plain: Mapping[str, Any]) -> bool:
    return one["variety"] >= KEPT * plain["variety"]


def chosen(tried: Sequence[dict[str, Any]], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Of those that keep the variety the one with the least area; else the most varied."""
    kept = [one for one in tried if varied(one, plain)]
    if kept:
        return min(kept, key=lambda one: one["area"])
    return max(tried, key=lambda one: one["variety"])


def _pairs(config: Config) -> Iterable[tuple[float, float]]:
    factors = config.factor if config.variant != "code" else (1.0,)
    return ((t_d, factor) for t_d in config.t_d for factor in factors)


def _walk(
    config: Config,
    model: DiffusionModel,
    size: tuple[int, int],
    text: dict[str, torch.Tensor],
    draws: Sequence[Draw],
    corrector: Corrector | None,
    name: str,
) -> tuple[list[Trajectory], Images]:
    """All images of one corrector, 8-bit, and how each batch was walked."""
    schedule = model.schedule(config.sampling_steps, *size)
    walked, images = [], []
    for at in tqdm(range(0, len(draws), config.batch), name):
        seeds = [draw.seed for draw in draws[at : at + config.batch]]
        rows = {n: part[at : at + len(seeds)].to(device(config.device)) for n, part in text.items()}
        chain = Chain(model, schedule, rows)
        noise = model.noise(seeds, *size)
        drawn: Drawn = draw_corrected(chain, noise, seeds, corrector)
        walked.append(drawn.trajectory)
        with torch.no_grad():
            images.append(round_to_8bit(decode(model, drawn.latents, chain.precision)).cpu())
    return walked, torch.cat(images)


@torch.no_grad()
def _judged(judge: Judge, images: Images, draws: Sequence[Draw], batch: int) -> ArtifactMap:
    parts = [
        judge(images[at : at + batch], [draw.prompt for draw in draws[at : at + batch]])
        for at in range(0, len(draws), batch)
    ]
    return torch.cat(parts)


def _area(maps: ArtifactMap) -> float:
    """Share of the pixels that are artifacts."""
    return (maps >= 0.5).float().mean().item()


@torch.no_grad()
def _overlap(
    config: Config,
    model: DiffusionModel,
    walked: Sequence[Trajectory],
    images: Images,
    seen: ArtifactMap,
    bank: Sequence[float],
    t_d: float,
    factor: float,
) -> dict[str, Any]:
    """IoU of Omega with the judge's map, pixels of all images together."""
    both = either = 0.0
    at = 0
    for one in walked:
        rows = slice(at, at + len(one.clean[0]))
        find = ScoreDynamics(one, model.decode, config.variant, Window(t_d=t_d), bank, factor)
        omega, flawed = find(images[rows]) >= 0.5, seen[rows] >= 0.5
        both += (omega & flawed).sum().item()
        either += (omega | flawed).sum().item()
        at = rows.stop
    return {"t_d": t_d, "factor": factor, "iou": both / max(either, 1.0)}


def _table(found: Calibration) -> Table:
    names = ("t_d", "factor", "gamma", "iou", "area", "variety")
    heads = ("T_d / T", "factor", "gamma", "IoU", "area", "variety")
    table = Table(*heads, title=f"{found.images} images")
    for one in found.tried:
        row = [one.get(name) for name in names]
        table.add_row(*("" if value is None else f"{value:.4g}" for value in row))
    kept = (found.t_d, found.factor, found.gamma)
    table.add_row(*(f"[bold]{value:g}[/bold]" for value in kept), "[bold]kept[/bold]", "", "")
    return table
