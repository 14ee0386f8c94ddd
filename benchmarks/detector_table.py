"""DiffDoctor's detector table in the miniature: what does each kind of data add? Three seeds.

    OMP_NUM_THREADS=1 python -m benchmarks.detector_table --out runs/detector_table

Rows, each with all of the one before: `baseline`, labels of the oldest grade alone, by annotators
who slip (the oracle's, 10 % of the regions missed, in 5 % of the images a sound spot painted);
`+ real`, valid renders as photographs; `+ hard cases`, the 200 of 12,000 images of all grades that
the detector of the row before finds hardest, labelled so too; `+ pseudo-labels`, 50,000 further
images of all grades with the masks of the detector of the row before. All are trained from random
weights, the last for longer. Columns as in the paper's table: squared error and both halves of the
KL divergence, on held-out prompts of all grades under the oracle's labels, and on valid renders.
What is there is kept.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import core.config
import data_balancing.hard_cases
import data_balancing.pseudo_label
import detector.evaluate
import detector.train
from base_models.load import load_base
from core.images import from_uint8
from core.run import plain
from core.samples import Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from core.storage import write_atomic
from detector.augmentation import Augmentation
from diffdoctor.demo_data import write_generated, write_renders
from miniature.bases import base_folder
from miniature.label import label
from miniature.prompts import category_of, split
from miniature.render import to_sample
from miniature.sample import draw_records, sample_records
from miniature.slips import slipped

GRADES = ("newest", "middle", "oldest")
STEPS = 4
"""Of the sampler."""
SLIPS = {"missed": 0.1, "invented": 0.05}
ROWS = ("baseline", "+ real", "+ hard cases", "+ pseudo-labels")
QUOTAS: tuple[dict[str, float], ...] = (
    {"human": 1.0},
    {"human": 0.96, "real": 0.04},
    {"human": 0.55, "hard": 0.2, "real": 0.25},
    {"human": 0.04, "hard": 0.06, "real": 0.4, "pseudo": 0.5},
)
"""Of every batch. What each row adds finds more, also where nothing is; renders teach restraint, so
their share grows with it. Hard cases are more broken than most, so they are few beside
pseudo-labels (docs/numbers.md has other shares as well)."""
LENGTHS = (1.0, 1.0, 1.0, 2.5)
"""Of each row's training, in `steps`: labels by the hundred are learnt by heart in twice as many,
50,000 are not (docs/numbers.md)."""
COLUMNS = {
    "mse": ("test", "mse"),
    "kl_fn": ("test", "kl_fn"),
    "kl_fp": ("test", "kl_fp"),
    "mse_real": ("real", "mse"),
    "kl_fp_real": ("real", "kl_fp"),
    "sound_flagged": ("sound", "artifact_frequency"),
}
"""The last: share of the sound hands and faces in which it sees anything, which is its shortcut."""


class Config(core.config.Config):
    """How much of everything."""

    out: Path = Path("runs/detector_table")
    """Run folder; the same command again takes up where it stopped."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """Of the data and the trainings."""
    labelled: int = Field(500, ge=1)
    """Images of the oldest grade that the baseline learns from."""
    real: int = Field(2000, ge=1)
    """Renders that teach as real photographs."""
    pool: int = Field(50_000, ge=3)
    """Images that are pseudo-labelled."""
    candidates: int = Field(12_000, ge=3)
    """Of the hard cases."""
    hard: int = Field(200, ge=1)
    """Hard cases that are labelled."""
    tested: int = Field(500, ge=1)
    """Held-out images of each grade, and renders."""
    sound: int = Field(1000, ge=1)
    """Held-out hands and faces of each grade; the sound ones among them are kept."""
    steps: int = Field(600, ge=1)
    """Of each row's training but the last, which takes `LENGTHS` as many."""
    batch: int = Field(32, ge=1)
    """Images of a step."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> int | None:
    data = config.out / "data"
    write_data(data, config)
    rows = []
    for seed in config.seeds:
        place, last = config.out / f"seed-{seed}", None
        for number, row in enumerate(ROWS):
            stores = [data / "labelled", data / "real", place / "hard", place / "pseudo"]
            if row == "+ hard cases":
                hard_cases(data, place, last, config.hard, seed)
            if row == "+ pseudo-labels":
                pseudo_labels(data, place, last)
            last = place / f"row-{number}"
            code = train(stores[: number + 1], last, number, config, seed)
            if code:
                return code
            rows.append({"seed": seed, "row": row, **measured(last, data)})
    Console(width=120).print(table(rows))
    text = (json.dumps(plain(rows), indent=2) + "\n").encode()
    write_atomic(config.json_file or config.out / "table.json", text)
    return None


def write_data(data: Path, config: Config) -> None:
    """What all seeds share."""
    train, held = split()["train"], split()["held_out"]
    write_slipped(data / "labelled", "oldest", train, config.labelled, seed=1)
    write_renders(data / "real", str(base_folder("newest")), train, config.real, seed=2)
    for grade in GRADES:
        base = str(base_folder(grade))
        write_generated(data / "test", base, held, config.tested, STEPS, seed=4)
    write_renders(data / "test", str(base_folder("newest")), held, config.tested, seed=5)
    write_sound(data / "sound", held, config.sound)
    for grade in GRADES:
        write_unlabelled(data / "pool", grade, train, config.pool // len(GRADES), seed=3)
        write_unlabelled(
            data / "candidates", grade, train, config.candidates // len(GRADES), seed=6
        )


def write_unlabelled(folder: Path, grade: str, prompts: Sequence[str], n: int, seed: int) -> None:
    base = str(base_folder(grade))
    with ShardWriter(folder, name=grade) as writer:
        records = sample_records(base, prompts, n, seed, source="pseudo")
        missing = [record for record in records if record.key not in writer]
        if not missing:
            return
        drawn = draw_records(load_base(base), missing, STEPS, 100)
        for images, chosen in tqdm(drawn, f"draw {grade}", -(-len(missing) // 100)):
            for image, record in zip(images, chosen, strict=True):
                sample = to_sample(image, image[0], record)
                writer.write(Sample(record.key, sample.image, None, record))


def write_slipped(folder: Path, grade: str, prompts: Sequence[str], n: int, seed: int) -> None:
    """Labels as people make them."""
    write_unlabelled(folder.with_name(f"{folder.name}-images"), grade, prompts, n, seed)
    store = ShardStore(folder.with_name(f"{folder.name}-images"))
    annotate(folder, store, range(len(store)), "human", seed)


def annotate(
    folder: Path, store: ShardStore, chosen: Sequence[int], source: str, seed: int
) -> None:
    with ShardWriter(folder) as writer:
        missing = [i for i in chosen if store.keys[i] not in writer]
        for part in tqdm(list(parts(missing)), f"label {folder.name}"):
            samples = [store[i] for i in part]
            for sample, mask in zip(samples, seen_by_people(samples, seed), strict=True):
                record = sample.record.model_copy(update={"source": source})
                writer.write(Sample(sample.key, sample.image, mask, record))


def parts(positions: Sequence[int], size: int = 100) -> Iterator[Sequence[int]]:
    return (positions[at : at + size] for at in range(0, len(positions), size))


def seen_by_people(samples: Sequence[Sample], seed: int) -> list[Any]:
    images = from_uint8(np.stack([sample.image for sample in samples]))
    maps = label(images, [sample.record.prompt for sample in samples])
    maps = slipped(images, maps, **SLIPS, seed=seed)
    return [(255 * map[0]).round().byte().numpy() for map in maps]


def write_sound(folder: Path, prompts: Sequence[str], n: int) -> None:
    """Of n held-out hands and faces of each grade, those in which the oracle marks nothing."""
    prompts = [prompt for prompt in prompts if category_of(prompt) in ("hand", "face")]
    drawn = folder.with_name(f"{folder.name}-images")
    for grade in GRADES:
        write_generated(drawn, str(base_folder(grade)), prompts, n, STEPS, seed=8)
    with ShardWriter(folder) as writer:
        for sample in ShardStore(drawn):
            if sample.mask is not None and not (sample.mask >= 128).any():
                writer.write(sample)


def hard_cases(data: Path, place: Path, last: Path | None, n: int, seed: int) -> None:
    """Chosen by the detector of the row before among all grades."""
    keys = place / "chosen/keys.txt"
    if not keys.is_file():
        settings = {"store": data / "candidates", "detector": last, "n": n, "out": place / "chosen"}
        data_balancing.hard_cases.main(
            data_balancing.hard_cases.Config.model_validate({**settings, "batch": 64})
        )
    store = ShardStore(data / "candidates")
    places = {key: i for i, key in enumerate(store.keys)}
    annotate(place / "hard", store, [places[key] for key in keys.read_text().split()], "hard", seed)


def pseudo_labels(data: Path, place: Path, last: Path | None) -> None:
    """For all of the pool, which holds none of the candidates."""
    settings = {"data": (data / "pool",), "detector": last, "out": place / "pseudo", "batch": 64}
    data_balancing.pseudo_label.main(data_balancing.pseudo_label.Config.model_validate(settings))


def train(data: Sequence[Path], out: Path, number: int, config: Config, seed: int) -> int | None:
    settings = {
        "data": tuple(data),
        "out": out,
        "quotas": QUOTAS[number],
        "seed": seed,
        "steps": round(config.steps * LENGTHS[number]),
        "batch": config.batch,
        "optimizer": "muon",
        "learning_rate": 4e-3,
        "loss": "bce",  # by the squared error 600 steps from random weights hardly teach anything
        "prior": 0.03,  # the same head for every row, whatever its labels say
        "valid_share": 0.0,
        # A hand of another size is no hand of this world, and nothing teaches by these detectors.
        "augmentation": Augmentation(move=0, shrink=0, adversarial=0),
    }
    return detector.train.main(detector.train.Config.model_validate(settings))


def measured(run: Path, data: Path) -> dict[str, float]:
    """The columns, each over the samples that it is about."""
    figures: dict[str, dict[str, Any]] = {}
    for name, store in (("test", "test"), ("sound", "sound")):
        file = run / f"{name}.json"
        settings = {"detector": run, "data": (data / store,), "json_file": file}
        detector.evaluate.main(detector.evaluate.Config.model_validate(settings))
        figures[name] = json.loads(file.read_text())
    by_source = figures["test"]["source"]
    of = {"test": by_source["human"], "real": by_source["real"]}
    of["sound"] = figures["sound"]["overall"]["all"]
    return {name: of[where][figure] for name, (where, figure) in COLUMNS.items()}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Means over the seeds, x100 as the paper prints them, and the spread."""
    shown = Table(title="x100: mean over the seeds, standard deviation")
    for name in ("", *COLUMNS):
        shown.add_column(name, justify="right" if name else "left")
    for row in ROWS:
        of_row = [one for one in rows if one["row"] == row]
        cells = []
        for name in COLUMNS:
            values = [100 * one[name] for one in of_row]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        shown.add_row(row, *cells)
    return shown


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.detector_table")
