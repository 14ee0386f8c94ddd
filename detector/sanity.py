"""A detector, real photographs and a base model's own images in; whether it can teach, out.

    diffdoctor detector sanity --detector D --real photographs --samples drawn
    diffdoctor detector sanity --detector D --real photographs --base FOLDER --prompts list.txt

A treatment can only mend what its detector sees, and only what it does not see in everything. An
image counts as hit when its surest pixel reaches .5 (DIAMOND, arXiv 2602.00883). Intervals are
Wilson's of a share, and Newcombe's of the difference of two (1998, method 10).
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import core.config
from base_models.load import load_base
from base_models.sample import autocast, sample
from base_models.sizes import check_steps, checked_size, usual_size, usual_steps
from core.contracts import Detector
from core.errors import UserError
from core.heatmap import Map
from core.image_files import list_images
from core.images import Picture, from_uint8, write_image
from core.prompts import read_prompts
from core.run import plain
from core.samples import Sample
from core.seeds import mix
from core.shards import filled
from core.storage import check_writable, write_atomic
from detector.data import spread
from detector.diagnose import Finding, Surest, diagnose, look
from detector.measure import device
from detector.metrics import wilson
from detector.segformer import freeze
from detector.sources import Chosen
from detector.storage import digest, open_detector, read_description

HARDLY = 0.1
"""A smaller difference between the two shares is hardly one; a treatment would follow noise."""
HAPPY = 0.1
"""Share of real photographs from which a detector that flags them is trigger-happy."""
DRAWN = 0x73616E
"""What a draw is for; see `core.seeds`."""
Seen = tuple[Finding, Picture | None, Map | None]


class Config(core.config.Config):
    """Does a detector see more in a base model's images than in real photographs?"""

    detector: Path
    """Folder of the detector, or of the run that trained it."""
    real: Path
    """Folder of real photographs, in subfolders too; best of what the prompts ask for."""
    samples: Path | None = None
    """Folder of the base model's own images, in subfolders too, or a store of them."""
    base: str | None = None
    """Instead of them: the base model (folder or Hub id) that draws them."""
    prompts: Path | None = None
    """What the base draws: one prompt a line, or a column `prompt`."""
    n: int = Field(64, ge=1)
    """Images that the base draws; of a folder at most `limit` are looked at."""
    steps: int | None = Field(None, ge=1)
    """Sampler steps: 4 of FLUX schnell, 28 of dev and 25 of any other, unless given."""
    height: int | None = Field(None, ge=8)
    """Of what the base draws, in pixels. None: its own."""
    width: int | None = Field(None, ge=8)
    """Of what the base draws, in pixels. None: its own."""
    batch: int = Field(1, ge=1)
    """Images drawn at once."""
    base_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the base's weights."""
    seed: int = Field(0, ge=0)
    """Of what the base draws."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """From here a pixel of a map is marked."""
    limit: int = Field(1000, ge=1)
    """Images of each side that are looked at."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""
    out: Path | None = None
    """Folder for contact sheets of both sides and for what was drawn."""
    sheet: int = Field(12, ge=1, le=200)
    """Images on each sheet: the surest ones."""
    device: str = "auto"
    """`auto`, or a torch device."""

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if (self.samples is None) == (self.base is None):
            raise ValueError("give --samples FOLDER, or --base with --prompts, and not both")
        if (self.base is None) != (self.prompts is None):
            raise ValueError("--base and --prompts belong together: give both or neither")
        return self


@dataclass(frozen=True)
class Side:
    """One kind of images: hit rate with its 95 % interval, mean artifact area of all images."""

    images: int
    hits: int
    rate: float
    low: float
    high: float
    area: float
    unreadable: int = 0


def main(config: Config) -> None:
    """Check, look at both sides, tell."""
    read_description(config.detector)
    real = _chosen(config.real, config.limit)
    drawn = None if config.samples is None else _samples(config.samples, config.limit)
    prompts = read_prompts(config.prompts) if config.prompts else []
    if config.out is not None:
        check_writable(config.out)
    if config.base is not None:
        checked_size(config.base, config.height, config.width)
        check_steps(config.base, config.steps or usual_steps(config.base))
    place = device(config.device)
    detector = freeze(open_detector(config.detector)).to(place)
    sheets = Surest(config.sheet), Surest(config.sheet)
    first = gathered(_of_any(detector, real, config.threshold), sheets[0], len(real), "real")
    if drawn is None:
        seen = _of_base(detector, config, prompts, place)
        second = gathered(seen, sheets[1], config.n, "samples")
    else:
        seen = _of_any(detector, drawn, config.threshold)
        second = gathered(seen, sheets[1], len(drawn), "samples")
    verdicts = judge(first, second)
    if config.out is not None:
        for name, shown in zip(("real", "samples"), sheets, strict=True):
            write_image(_made(config.out) / f"{name}.png", shown.sheet(config.threshold))
    if config.json_file is not None:
        said: dict[str, Any] = {"detector": digest(config.detector), "threshold": config.threshold}
        said |= {"real": asdict(first), "samples": asdict(second), "verdicts": verdicts}
        write_atomic(config.json_file, (json.dumps(plain(said), indent=2) + "\n").encode())
    Console().print(table(first, second))
    for sentence in verdicts.values():
        print(sentence)


def gathered(seen: Iterable[Seen], surest: Surest, total: int, name: str) -> Side:
    """The figures of one side; raises `UserError` where no image can be read."""
    findings, lost = [], 0
    for finding, image, map in tqdm(seen, name, total):
        if image is None or map is None:
            lost += 1
            continue
        findings.append(finding)
        surest.add(finding, image, map)
    if not findings:
        raise UserError(f"none of the {name} images can be read: name another folder.")
    n, hits = len(findings), sum(finding.verdict == "artifact" for finding in findings)
    low, high = wilson(hits, n)
    area = sum(finding.area or 0.0 for finding in findings) / n
    return Side(n, hits, hits / n, low, high, area, lost)


def difference(real: Side, samples: Side) -> tuple[float, float]:
    """95 % interval of samples' rate - real's."""
    d = samples.rate - real.rate
    down = math.hypot(samples.rate - samples.low, real.high - real.rate)
    up = math.hypot(samples.high - samples.rate, real.rate - real.low)
    return d - down, d + up


def judge(real: Side, samples: Side) -> dict[str, str]:
    """What it is (`sees`, `blind` or `undecided`, and `trigger_happy`), each in a sentence."""
    low, high = difference(real, samples)
    shares = f"it flags {samples.rate:.0%} of the samples and {real.rate:.0%} of real photographs"
    said = {}
    if high < HARDLY:
        said["blind"] = f"blind: {shares}, hardly more; what it would teach is no mend."
    elif low <= 0:
        said["undecided"] = (
            f"undecided: {shares}, which may be chance ({low:+.0%} to {high:+.0%}); give more "
            "images of both."
        )
    else:
        said["sees"] = f"it sees: {shares} (more by {low:.0%} to {high:.0%})."
    if real.low >= HAPPY:
        said["trigger_happy"] = (
            f"trigger-happy: at least {real.low:.0%} of real photographs are flagged; train it on "
            "more of them (`real/`), or it will mend what is sound."
        )
    return said


def table(real: Side, samples: Side) -> Table:
    shown = Table("images", "number", "hit rate", "95 %", "artifact area", "unreadable")
    for name, side in (("real photographs", real), ("samples", samples)):
        between = f"{side.low:.1%} to {side.high:.1%}"
        numbers = f"{side.rate:.1%}", between, f"{side.area:.2%}"
        shown.add_row(name, str(side.images), *numbers, str(side.unreadable))
    return shown


def _chosen(folder: Path, limit: int) -> list[Path]:
    if folder.is_file():
        raise UserError(f"{folder} is a file: name a folder of images.")
    paths = list_images(folder, deep=True)
    return [paths[i] for i in spread(len(paths), limit)]


def _samples(folder: Path, limit: int) -> Sequence[Path] | Sequence[Sample]:
    """Files of a folder, or samples of a store."""
    if not any(folder.glob("*.manifest.jsonl")):
        return _chosen(folder, limit)
    store = filled(folder)
    return Chosen(store, spread(len(store), limit))


def _of_any(
    detector: Detector, images: Sequence[Path] | Sequence[Sample], threshold: float
) -> Iterator[Seen]:
    for one in images:
        if isinstance(one, Path):
            yield diagnose(detector, one, threshold)
            continue
        image = from_uint8(one.image[None])[0]
        finding, map = look(detector, image, one.key, threshold)
        yield finding, image, map


def _of_base(
    detector: Detector, config: Config, prompts: list[str], place: torch.device
) -> Iterator[Seen]:
    """Drawn, kept where asked, and looked at, batch by batch."""
    dtype = getattr(torch, config.base_dtype)
    base = config.base or ""
    model = load_base(base, place, dtype)
    height, width = usual_size(base, config.height, config.width)
    steps = config.steps or usual_steps(base)
    precision = autocast(place.type, "no" if dtype == torch.float32 else "bf16")
    for start in range(0, config.n, config.batch):
        places = range(start, min(start + config.batch, config.n))
        images = sample(
            model,
            [prompts[i % len(prompts)] for i in places],
            [mix(config.seed, DRAWN, i) for i in places],
            steps=steps,
            height=height,
            width=width,
            batch=config.batch,
            precision=precision,
        )
        for i, image in zip(places, images, strict=True):
            name = f"{i:05d}.png"
            if config.out is not None:
                write_image(_made(config.out / "samples") / name, image)
            finding, map = look(detector, image, name, config.threshold)
            yield finding, image, map


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m detector.sanity")
