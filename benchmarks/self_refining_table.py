"""Self-refining training's table in the miniature: its parts one by one, then one factor at a time.

    OMP_NUM_THREADS=1 python -m benchmarks.self_refining_table --out runs/self_refining
    OMP_NUM_THREADS=1 python -m benchmarks.self_refining_table --out runs/self_refining \\
        --rows ddpm-both

Every row trains the same base on for equally many steps, with the same renders and seeds; `base`
is plain training, the control. A highlighter for each base learns from these renders and the base's
own images. Then every row draws images from the same seeds, and the oracle judges them, which no
row has seen. FID, precision and recall besides, as the --features see them.
A row at a time or all; what is finished is taken up, and the table is of whatever is finished:
OUT/table.json and OUT/table.md.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from rich.console import Console
from rich.markdown import Markdown

import core.config
import treat.self_refining.settings
from base_models.load import load_base
from base_models.sample import sample
from base_models.sizes import check_size
from benchmarks.self_refining_figures import judged, markdown, set_figures, summarised
from core.errors import UserError
from core.images import from_uint8, write_image
from core.run import plain
from core.seeds import mix
from core.storage import read_json, write_atomic
from detector import train_highlighter
from detector.features import Features, open_features
from detector.measure import device
from miniature.bases import base_folder
from miniature.law import CATEGORIES, SIZE, all_prompts
from miniature.render import render_samples
from miniature.stages import SHARES
from treat.self_refining import train

REAL, REFERENCE, DRAWN, JUDGED = 181, 182, 183, 184
"""What a draw is for; see `core.seeds`."""
RowName = Literal[
    "ddpm-base", "ddpm-forward", "ddpm-reverse", "ddpm-both", "ldm-base", "ldm-reverse",
    "ddpm-1to4", "ddpm-4to1", "ddpm-cycle10", "ddpm-cycle500", "ddpm-lambda0.2", "ddpm-lambda5",
    "ddpm-centred",
]  # fmt: skip
LAMBDA = {"forward_weight": 0.01, "reverse_weight": 0.025}
"""The paper's."""


class Row(NamedTuple):
    title: str
    changes: Mapping[str, Any]
    """Against the paper's settings: both parts, base : refine 1 : 1, a map every 100 steps."""


def weaker(factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in LAMBDA.items()}


ROWS: dict[RowName, Row] = {
    "ddpm-base": Row("DDPM, base", {"refine_share": 0.0}),
    "ddpm-forward": Row("DDPM, forward", {"reverse_weight": 0.0}),
    "ddpm-reverse": Row("DDPM, reverse", {"forward_weight": 0.0}),
    "ddpm-both": Row("DDPM, both", {}),
    "ldm-base": Row("LDM, base", {"refine_share": 0.0}),
    "ldm-reverse": Row("LDM, reverse", {"forward_weight": 0.0}),
    "ddpm-1to4": Row("DDPM, both, base : refine 1 : 4", {"refine_share": 0.8}),
    "ddpm-4to1": Row("DDPM, both, base : refine 4 : 1", {"refine_share": 0.2}),
    "ddpm-cycle10": Row("DDPM, both, a map every 10 steps", {"cycle": 10}),
    "ddpm-cycle500": Row("DDPM, both, a map every 500 steps", {"cycle": 500}),
    "ddpm-lambda0.2": Row("DDPM, both, lambda x 0.2", weaker(0.2)),
    "ddpm-lambda5": Row("DDPM, both, lambda x 5", weaker(5.0)),
    "ddpm-centred": Row("DDPM, both, the map less its mean", {"forward": "centred"}),
}


class Config(core.config.Config):
    """Which rows, and how much of everything."""

    out: Path = Path("runs/self_refining")
    """Folder of all; the same settings take up what is there."""
    rows: tuple[RowName, ...] = Field(get_args(RowName), min_length=1)
    """What to train and judge now."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """Of the trainings."""
    ddpm: str = "ddpm"
    """A base of the miniature by name, or a pipeline folder (`diffdoctor miniature build`)."""
    ldm: str = "ldm"
    """The same of latents."""
    steps: int = Field(2000, ge=2)
    """Updates of every row."""
    batch: int = Field(16, ge=1)
    """Images of an update."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of the rows' trainings."""
    ema: float = Field(0.999, ge=0, lt=1)
    """The paper's .9999 is for 500,000 steps."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Of the rows' trainings; the highlighter learns, and images are drawn, in float32."""
    map_images: int = Field(32, ge=1)
    """Images of which a map is the mean."""
    map_steps: int = Field(25, ge=1)
    """Sampling steps of these images."""
    highlighter: str = "vgg16"
    """Network of the highlighters."""
    highlighter_steps: int = Field(600, ge=1)
    """Updates of a highlighter."""
    real: int = Field(2000, ge=20)
    """Renders that teach; as many of other seeds are FID's real images."""
    drawn: int = Field(1000, ge=20)
    """The base's own images that its highlighter learns from."""
    images: int = Field(1000, ge=4)
    """Judged, of every row and seed."""
    sampling_steps: int = Field(25, ge=1)
    """Of the judged images."""
    draw_batch: int = Field(50, ge=1)
    """Images drawn and judged at once."""
    features: str | None = str(Path(__file__).parents[1] / "miniature/features")
    """What FID is of, as `diffdoctor compare --features` takes it; None: no FID."""
    resamples: int = Field(200, ge=2)
    """Of FID's intervals."""
    device: str = "auto"
    """`auto`, or a torch device."""


FREE = {"out", "rows", "seeds", "features", "resamples", "device"}
"""Settings in which two calls on one folder may differ."""


def main(config: Config) -> int | None:
    """Prepare, train, draw, judge; the table of all that is finished."""
    network = None if config.features is None else open_features(config.features)
    claim(config)
    families = sorted({family_of(row) for row in config.rows})
    for family in families:
        check_size(str(base_of(config, family)), SIZE, SIZE)
    render(config.out / "real/real", config.real, mix(REAL))
    render(config.out / "reference", config.real, mix(REFERENCE))
    for family in families:
        code = highlighter(config, family)
        if code:
            return code
    for row in config.rows:
        for seed in config.seeds:
            code = train.main(settings(config, row, seed))
            if code:
                return code
            pipeline = run_of(config, row, seed) / "pipeline"
            pictures = config.out / "images" / f"{row}-{seed}"
            draw(str(pipeline), pictures, config.images, JUDGED, config)
            judged(config.out / "figures" / f"{row}-{seed}.csv", pictures, config.draw_batch)
    publish(config, network)
    return None


def claim(config: Config) -> None:
    """Raise `UserError` for a folder of other settings; what it does not know has its default."""
    told = known = config.model_dump(mode="json", exclude=FREE)
    path = config.out / "plan.json"
    if path.is_file():
        known = Config.model_validate({}).model_dump(mode="json", exclude=FREE)
        known |= read_json(path)
    odd = sorted(name for name in told if known[name] != told[name])
    if odd:
        raise UserError(
            f"{config.out} is of other settings ({', '.join(odd)}): name another --out."
        )
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(told, indent=2).encode())


def family_of(row: str) -> str:
    return row.split("-")[0]


def base_of(config: Config, family: str) -> Path:
    return base_folder(config.ddpm if family == "ddpm" else config.ldm)


def run_of(config: Config, row: str, seed: int) -> Path:
    return config.out / "runs" / f"{row}-{seed}"


def render(folder: Path, count: int, seed: int) -> None:
    """Sound renders in the shares in which the bases were taught; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(CATEGORIES):
        prompts = [one for one, (category, _) in all_prompts().items() if category == name]
        paths = [folder / f"{name}-{i:05d}.png" for i in range(max(1, round(SHARES[name] * count)))]
        if all(path.exists() for path in paths):
            continue
        samples = render_samples(len(paths), mix(seed, number) % 2**32, prompts=prompts)
        for path, one in zip(paths, samples, strict=True):
            write_image(path, from_uint8(one.image[None])[0])


def highlighter(config: Config, family: str) -> int | None:
    """Taught by the renders and by what the base draws before any row."""
    drawn = config.out / family / "drawn"
    draw(str(base_of(config, family)), drawn / "images", config.drawn, DRAWN, config)
    given = {
        "data": (config.out / "real", drawn),
        "out": config.out / family / "highlighter",
        "variant": config.highlighter,
        "steps": config.highlighter_steps,
        "device": config.device,
    }
    return train_highlighter.main(train_highlighter.Config.model_validate(given))


def settings(config: Config, row: RowName, seed: int) -> treat.self_refining.settings.Config:
    """Of one row: the paper's, but for what the row is about and what the miniature needs."""
    family = family_of(row)
    given: dict[str, Any] = {
        **LAMBDA,
        "base": str(base_of(config, family)),
        "data": config.out / "real/real",
        "highlighter": config.out / family / "highlighter",
        "out": run_of(config, row, seed),
        "height": SIZE,
        "width": SIZE,
        "steps": config.steps,
        "batch": config.batch,
        "learning_rate": config.learning_rate,
        "ema": config.ema,
        "mixed_precision": config.mixed_precision,
        "map_images": config.map_images,
        "map_steps": config.map_steps,
        "device": config.device,
        "seed": seed,
    }
    given |= ROWS[row].changes
    if not given.get("refine_share", 1):
        given["highlighter"] = None
    if family == "ldm":
        given["forward_weight"] = 0.0
    return treat.self_refining.settings.Config.model_validate(given)


@torch.no_grad()
def draw(base: str, folder: Path, count: int, purpose: int, config: Config) -> None:
    """Images that are not there yet, from the same seeds whatever the base."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.png" for i in range(count)]
    left = [i for i, path in enumerate(paths) if not path.exists()]
    model = load_base(base).to(device(config.device)) if left else None
    for at in range(0, len(left), config.draw_batch):
        assert model is not None  # something is left
        rows = left[at : at + config.draw_batch]
        seeds = [mix(purpose, i) % 2**32 for i in rows]
        images = sample(
            model,
            [""] * len(rows),
            seeds,
            steps=config.sampling_steps,
            height=SIZE,
            width=SIZE,
            batch=config.draw_batch,
        )
        for i, image in zip(rows, images, strict=True):
            write_image(paths[i], image)


def publish(config: Config, network: Features | None) -> None:
    """Of every row and seed that is judged, whichever call did it."""
    found = finished(config.out)
    numbers = config.out, config.draw_batch, config.resamples
    sets = None if network is None else set_figures(network, *numbers)
    figures = summarised(config.out, found, sets)
    figures["settings"] = config.model_dump(mode="json", exclude=FREE)
    write_atomic(config.out / "table.json", (json.dumps(plain(figures), indent=2) + "\n").encode())
    said = markdown(figures, {name: row.title for name, row in ROWS.items()})
    write_atomic(config.out / "table.md", said.encode())
    Console(width=max(150, Console().width)).print(Markdown(said))


def finished(out: Path) -> dict[str, Sequence[int]]:
    """Seeds of each row, in the table's order."""
    found: dict[str, list[int]] = {name: [] for name in ROWS}
    for path in sorted((out / "figures").glob("*.csv")):
        row, _, seed = path.stem.rpartition("-")
        if row in found and seed.isdigit():
            found[row].append(int(seed))
    return {name: sorted(seeds) for name, seeds in found.items() if seeds}


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.self_refining_table")
