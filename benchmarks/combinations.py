"""What none of the three papers has: their methods combined, on the same prompts and seeds.

    diffdoctor demo --base sdxl --out runs/demo_sdxl
    OMP_NUM_THREADS=1 python -m benchmarks.combinations --demo runs/demo_sdxl --out runs/combined

Base, detectors, prompts and real images are those of a finished demo of a base that draws in twenty
steps; so are `control` and `segformer`, its two adapters. `flaw_map`: the map of a highlighter is
the reward of the same treatment, in place of the detector's. `asced` corrects the base while it
draws, `segformer_asced` the treated base. `distilled`: an adapter learns by the offline term alone
from images that ASCED corrected; `distilled_control` from the same prompts and seeds as the base
drew them. Score dynamics are no reward: no gradient leads from their map to an image. ASCED is
calibrated by the demo's second detector on the search prompts. The oracle judges. The same command
goes on where it stopped; OUT/summary.json, OUT/table.md, OUT/sheet.png.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from rich.console import Console
from rich.markdown import Markdown

import core.config
import treat.train
from base_models.sample import decode
from benchmarks.healing import open_demo
from core.errors import UserError
from core.images import round_to_8bit, write_image
from core.prompts import read_prompts
from core.run import PAUSED, Run
from core.storage import read_json, write_atomic
from detector import train_highlighter
from detector.measure import device
from detector.score_dynamics import Variant
from diffdoctor.demo import CONTROL, Demo
from miniature.law import SIZE
from miniature.listing import CAPTIONS
from miniature.meters import NAME, Bench
from treat import arms as drawn
from treat import calibrate, figures
from treat.adapter import Adapter, pin, read_adapter
from treat.correctors.opening import Opened, Wanted, open_corrector
from treat.correctors.sampling import draw_corrected
from treat.evaluate import first_pairs, measure, progress, reader, sheet, summarise
from treat.step import Chain

Arm = Literal[
    "control", "segformer", "flaw_map", "asced", "segformer_asced", "distilled", "distilled_control"
]
OF_DEMO = {"control": "control", "segformer": "adapter"}
"""Arms whose adapter the demo has trained."""
FEWEST = 8
"""Steps below which score dynamics say nothing."""
TAUGHT, JUDGED = 11, 7
"""Seeds of the images that are distilled, and of those that are judged."""
DISTILLED_BY = {"demo", "distilled", "distilled_guidance", "variant"}
"""Settings that say which images are distilled."""
CORRECTED, PLAIN = "corrected", "plain"
FIGURES = ("artifact_frequency", "artifact_area")


class Shown(NamedTuple):
    title: str
    adapter: str | None = None
    """The arm whose adapter it has."""
    corrected: bool = False
    beside: str | None = None
    """The arm from which it differs in one thing."""


ARMS: dict[str, Shown] = {
    "control": Shown("LoRA, offline term alone", "control"),
    "segformer": Shown("LoRA, the SegFormer's map", "segformer"),
    "flaw_map": Shown("LoRA, the highlighter's map", "flaw_map"),
    "asced": Shown("base, ASCED", None, True),
    "segformer_asced": Shown("LoRA, the SegFormer's map; ASCED", "segformer", True, "segformer"),
    "distilled": Shown("LoRA, ASCED's images distilled", "distilled", beside="distilled_control"),
    "distilled_control": Shown("LoRA, the base's own images distilled", "distilled_control"),
}


class Config(core.config.Config):
    """Which demo, and how much of everything."""

    demo: Path = Path("runs/demo_sdxl")
    """Folder of a finished `diffdoctor demo --base sdxl` (or kolors)."""
    quick: bool = False
    """The demo was a `--quick` one."""
    out: Path = Path("runs/combinations")
    """Run folder; the same command again takes up where it stopped."""
    arms: tuple[Arm, ...] = Field(get_args(Arm), min_length=1)
    """Beside the base."""
    n: int = Field(1000, ge=2)
    """Images an arm."""
    steps: int | None = Field(None, ge=1)
    """Updates of the adapters that are trained here; by default as many as the demo's."""
    distilled: int = Field(1000, ge=2)
    """Images that are distilled."""
    distilled_guidance: float | None = Field(None, ge=0)
    """Theirs; None: the base's own. At 1 they are of the network's own distribution."""
    variant: Variant = "x0"
    """Of ASCED; the one whose mask follows the image and not its first noise (docs/numbers.md)."""
    highlighter: str = "vgg16"
    """Network of the highlighter; it learns from the demo's labelled images, whose masks it is not
    shown."""
    highlighter_steps: int = Field(600, ge=1)
    """Updates of the highlighter."""
    calibration_images: int = Field(64, ge=2)
    """On which ASCED is calibrated."""
    batch: int = Field(50, ge=1)
    """Images drawn and judged at once."""
    device: str = "auto"
    """`auto`, or a torch device."""


def main(config: Config) -> int | None:
    """Train what is missing, draw every arm, let the oracle judge."""
    demo = open_demo(config.demo, config.quick)
    if demo.settings.sampling_steps < FEWEST:
        raise UserError(
            f"{config.demo} draws in {demo.settings.sampling_steps} steps, too few for ASCED: name "
            "a demo of --base sdxl."
        )
    code = prepare(config, demo)
    if code:
        return code
    adapters = {arm: adapter_of(config, demo, arm) for arm in config.arms}
    may_change, out = {"arms", "device", "batch"}, config.out / "judged"
    with Run.start(config, out, "benchmarks.combinations", may_change=may_change) as run:
        draws = drawn.plan(read_prompts(demo.out / "prompts/held_out.txt"), config.n, JUDGED)
        draw(run, config, demo, drawn.BASE, None, draws, None)
        for arm, adapter in adapters.items():
            opened = asced(config, demo, JUDGED) if ARMS[arm].corrected else None
            draw(run, config, demo, arm, adapter, draws, opened)
        if run.interrupted:
            return PAUSED
        names = [drawn.BASE, *config.arms]
        oracle = Bench()
        read = reader(oracle.judge, oracle.flagged, oracle.meters, {})
        control = "control" if "control" in names else None
        tables = measure(run, names, draws, config.batch, read)
        summary = summarise(tables, control, JUDGED)
        for arm, shown in ARMS.items():
            if shown.beside and {arm, shown.beside} <= tables.keys():
                change = figures.compare(tables[arm], tables[shown.beside], JUDGED)
                summary["differences"][f"{arm} - {shown.beside}"] = change
        taught = {arm: name for arm in config.arms if (name := ARMS[arm].adapter)}
        ruined = [arm for arm, name in taught.items() if not sound(run_of(config, demo, name))]
        said = markdown(summary, ruined)
        write_atomic(config.out / "table.md", said.encode())
        pairs = first_pairs(run.folder, names, draws[:6], oracle.judge)
        write_image(config.out / "sheet.png", sheet(pairs))
        run.summary({**summary, "judge": NAME, "no_sound_look": ruined})
        Console(width=max(150, Console().width)).print(Markdown(said))
    return None


def prepare(config: Config, demo: Demo) -> int | None:
    """Calibration, highlighter and adapters that an arm asks for, each once."""
    wanted = {ARMS[arm].adapter for arm in config.arms}
    if any(ARMS[arm].corrected for arm in config.arms) or "distilled" in wanted:
        calibrated(config, demo)
    if "flaw_map" in wanted:
        given = {
            "data": (demo.out / "data/train",),
            "out": config.out / "highlighter",
            "variant": config.highlighter,
            "steps": config.highlighter_steps,
            "device": config.device,
        }
        code = train_highlighter.main(train_highlighter.Config.model_validate(given))
        code = code or treat.train.main(treatment(config, demo, "flaw_map"))
        if code:
            return code
    for arm, kind in (("distilled", CORRECTED), ("distilled_control", PLAIN)):
        if arm in wanted:
            code = distil(config, demo, kind) or treat.train.main(treatment(config, demo, arm))
            if code:
                return code
    return None


def treatment(config: Config, demo: Demo, arm: str) -> treat.train.Config:
    """The demo's treatment, but for what is learnt from."""
    changes: dict[str, Any] = {"guard": "warn", "out": config.out / "adapters" / arm}
    if config.steps is not None:
        changes["steps"] = config.steps
    if arm == "flaw_map":
        changes["detector"] = config.out / "highlighter"
        changes["second_detector"] = demo.out / "second_detector"
    else:
        kind = CORRECTED if arm == "distilled" else PLAIN
        changes |= {**CONTROL, "offline": distilled_folder(config, kind)}
    return demo.treatment(arm, **changes)


def adapter_of(config: Config, demo: Demo, arm: str) -> Adapter | None:
    name = ARMS[arm].adapter
    if name is None:
        return None
    folder = run_of(config, demo, name)
    return read_adapter(folder, "best" if sound(folder) else "last")


def run_of(config: Config, demo: Demo, name: str) -> Path:
    own = OF_DEMO.get(name)
    return demo.out / own if own else config.out / "adapters" / name


def sound(folder: Path) -> bool:
    """Whether the guard found a look at the treatment's images that was."""
    return read_json(folder / "summary.json")["best_step"] is not None


def calibrated(config: Config, demo: Demo) -> Path:
    path = config.out / "asced.json"
    if not path.exists():
        given = {
            "base": demo.base,
            "out": path,
            "variant": config.variant,
            "judges": (f"second={demo.out / 'second_detector'}",),
            "prompts": demo.out / "prompts/search.txt",
            "n": config.calibration_images,
            "sampling_steps": demo.settings.sampling_steps,
            "height": SIZE,
            "width": SIZE,
            "batch": config.batch,
            "device": config.device,
        }
        config.out.mkdir(parents=True, exist_ok=True)
        calibrate.main(calibrate.Config.model_validate(given))
    return path


def asced(config: Config, demo: Demo, seed: int) -> Opened:
    steps, own = demo.settings.sampling_steps, calibrated(config, demo)
    wanted = Wanted("asced", config.variant, (), demo.base, True, steps, SIZE, SIZE, seed, own)
    return open_corrector(wanted, None)


def distilled_folder(config: Config, kind: str) -> Path:
    return config.out / "distilled/images" / kind


def distil(config: Config, demo: Demo, kind: str) -> int | None:
    """The base's images of training prompts, corrected or plain, with captions."""
    draws = drawn.plan(read_prompts(demo.out / "prompts/train.txt"), config.distilled, TAUGHT)
    may_change, out = set(Config.model_fields) - DISTILLED_BY, config.out / "distilled"
    with Run.start(config, out, "benchmarks.combinations", may_change=may_change) as run:
        opened = asced(config, demo, TAUGHT) if kind == CORRECTED else None
        draw(run, config, demo, kind, None, draws, opened, config.distilled_guidance)
        if run.interrupted:
            return PAUSED
    lines = [{"file_name": f"{i:06d}.png", "text": one.prompt} for i, one in enumerate(draws)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomic(distilled_folder(config, kind) / CAPTIONS, text.encode())
    return None


@torch.no_grad()
def draw(
    run: Run,
    config: Config,
    demo: Demo,
    name: str,
    adapter: Adapter | None,
    draws: Sequence[drawn.Draw],
    opened: Opened | None,
    guidance: float | None = None,
) -> None:
    """The images of one arm that are not there yet, corrected or plain, by the same loop."""
    place, steps = device(config.device), demo.settings.sampling_steps
    folder = run.folder / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    used = ["" if adapter is None else adapter.digest, "asced" if opened else ""]
    used += [] if guidance is None else [f"guidance {guidance:g}"]
    pin(folder / drawn.NOTE, " ".join(used))
    left = [i for i in range(len(draws)) if not drawn.image_path(run.folder, name, i).exists()]
    if not left:
        return
    how = demo.base, steps, SIZE, SIZE, config.batch, str(place), "fp32"
    model = drawn.load_arm(drawn.Sampling(*how, guidance=guidance), adapter)
    text = drawn.encode(model, draws, str(place))
    model.to(place)
    corrector = None if opened is None else opened.make(model)
    schedule = model.schedule(steps, SIZE, SIZE)
    for at in progress(run, name)(range(0, len(left), config.batch)):
        rows = left[at : at + config.batch]
        seeds = [draws[i].seed for i in rows]
        chain = Chain(model, schedule, {n: part[rows].to(place) for n, part in text.items()})
        found = draw_corrected(chain, model.noise(seeds, SIZE, SIZE), seeds, corrector)
        images = round_to_8bit(decode(model, found.latents, chain.precision)).cpu()
        for i, image in zip(rows, images, strict=True):
            write_image(drawn.image_path(run.folder, name, i), image)


def markdown(summary: Mapping[str, Any], ruined: Sequence[str] = ()) -> str:
    """A line an arm; differences in points, paired, with 95 % intervals."""
    head = ["arm", "n", "artifact frequency", "artifact area", "attributes"]
    head += ["frequency - base", "area - base", "frequency - control"]
    head += ["beside", "frequency - it", "area - it"]
    lines = [head, ["---"] * len(head)]
    for name, arm in summary["arms"].items():
        title = ARMS[name].title if name in ARMS else name
        cells = [title, f"{arm['n']:,}"]
        for figure in FIGURES:
            low, high = arm["interval"][figure]
            cells.append(f"{arm[figure]:.1%} [{low:.1%}, {high:.1%}]")
        cells.append(f"{arm['attribute_match']:.1%}")
        beside = ARMS[name].beside if name in ARMS else None
        cells += [difference(summary, name, "base", figure) for figure in FIGURES]
        cells += [difference(summary, name, "control", FIGURES[0]), beside or ""]
        cells += [difference(summary, name, beside, figure) for figure in FIGURES]
        lines.append(cells)
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    said = [f"Judged by {NAME}.", f"{summary['method']}."]
    said += [f"No look at '{ARMS[arm].title}' was sound: its last step is shown." for arm in ruined]
    return f"{text}\n\n{' '.join(said)}\n"


def difference(summary: Mapping[str, Any], name: str, other: str | None, figure: str) -> str:
    change = summary["differences"].get(f"{name} - {other}")
    return "" if change is None else points(change[figure])


def points(change: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in change["interval"])
    return f"{100 * change['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.combinations")
