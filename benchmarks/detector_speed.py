"""How fast does a detector learn and label on this device, and in how much memory?

    python -m benchmarks.detector_speed --preset mit-b5-24gb --json mit-b5-24gb.json
    OMP_NUM_THREADS=1 python -m benchmarks.detector_speed --variant nano --side 64 --batch 8

Random weights, and images of a small store that is written first. `learning` is the step of
`diffdoctor detector train` with the preset's settings: batch, augmentation, hardening, loss,
gradient, update; `learning, read` the same where the decoded images do not fit into memory and each
is read from its shard. `labelling` and `bare` are `benchmarks.pseudo_label`'s. On a CPU the seconds
are the processor's, of all threads; on a GPU they are the clock's. The memory is the learning's:
what tensors took of the GPU at the peak, or on a CPU what the process had resident.
"""

import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from tqdm import trange

import core.config
from benchmarks import pseudo_label
from benchmarks.detector_memory import built
from benchmarks.footprint import MB, resident
from benchmarks.pseudo_label import fill, timed
from benchmarks.stopwatch import GIB, clean_up, machine, peaks
from core.errors import UserError
from core.explain import unknown_name
from core.run import plain
from core.storage import write_atomic
from data_balancing.teacher import Teacher
from detector import train
from detector.data import MEMORY, open_labelled
from detector.learning import Learner, learn_step
from detector.measure import device
from detector.storage import digest, save_detector


class Config(core.config.Config):
    """Which detector, on how large images."""

    preset: str | None = None
    """Of `diffdoctor detector train`; without one its defaults hold, but for what follows."""
    variant: str | None = None
    """Another network than the preset's."""
    side: int = Field(512, ge=32)
    """Of the square images, which the network sees at this size."""
    batch: int | None = Field(None, ge=1)
    """Images of a step; the preset's by default."""
    n: int = Field(64, ge=1)
    """Images of the store."""
    labelled_at_once: int = Field(16, ge=1)
    """Images that the detector sees at once while it labels: `data pseudo-label --batch`."""
    repeats: int = Field(5, ge=1)
    """Timed steps, and timed shards, after one of each to warm up."""
    device: str = "auto"
    """`auto`, or a torch device."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    settings, place = settings_of(config), device(config.device)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        fill(folder / "labelled", config.n, config.side, labelled=True)
        found = learn(folder / "labelled", settings, str(place), config.repeats)
        fill(folder / "store", config.n, config.side)
        save_detector(built(settings), folder / "detector", {})
        bf16, given = settings.mixed_precision == "bf16", folder / "detector"
        teacher = Teacher(given, digest(given), config.labelled_at_once, str(place), bf16)
        seconds = pseudo_label.measure(folder, teacher, config.repeats)
    found |= {"bare": 1 / seconds["bare"], "labelling": 1 / seconds["whole"]}
    found["ratio"] = found["labelling"] / found["bare"]
    Console().print(said(found, settings, str(place)))
    if config.json_file:
        asked = settings.model_dump(mode="json", exclude={"data", "out"})
        found |= {"machine": machine(), "settings": asked}
        write_atomic(config.json_file, (json.dumps(plain(found), indent=2) + "\n").encode())


def settings_of(config: Config) -> train.Config:
    """What `detector train` would be asked for; raises `UserError` for a preset that is none."""
    known, files = core.config.presets(train.Config), []
    if config.preset is not None and config.preset not in known:
        raise UserError(unknown_name(config.preset, known, "the presets"))
    if config.preset is not None and train.Config.presets is not None:
        files = [train.Config.presets / f"{config.preset}.yaml"]
    words = ["--data", "none", "--out", "none", "--size", str(config.side)]
    words += ["--input-size", str(config.side)]
    words += [] if config.variant is None else ["--variant", config.variant]
    words += [] if config.batch is None else ["--batch", str(config.batch)]
    return core.config.load_config(train.Config, files, words)


def learn(data: Path, settings: train.Config, on: str, repeats: int) -> dict[str, Any]:
    """Images a second of the program's step, with images held and images read, and GiB."""
    clean_up()
    network = built(settings).to(device(on)).train()
    learner = Learner(network, settings.weight_decay, settings.ema, settings.optimizer)
    found: dict[str, Any] = {}
    for name, memory in (("learning", MEMORY), ("learning, read", 0)):
        samples, _ = open_labelled([data], memory)
        take = partial(
            learn_step,
            learner,
            samples,
            settings.augmentation,
            seed=settings.seed,
            batch=settings.batch,
            rate=settings.learning_rate,
            clip=settings.clip,
            loss=settings.loss,
            size=settings.size,
            autocast=settings.mixed_precision == "bf16",
        )
        laps = [timed(partial(take, step=i), on) for i in trange(repeats + 1, desc=name)]
        found[name] = settings.batch / statistics.median(laps[1:])
        found[f"laps of {name}"] = laps
    on_gpu = device(on).type == "cuda"
    return found | (peaks() if on_gpu else {"peak": resident("VmHWM") * MB / GIB})


def said(found: dict[str, Any], settings: train.Config, on: str) -> str:
    return (
        f"{settings.variant}, {settings.size} pixels, {on}: learning {found['learning']:.3g} "
        f"images a second in batches of {settings.batch} ({found['learning, read']:.3g} where "
        f"they are read), {found['peak']:.2f} GiB at the peak; labelling {found['labelling']:.3g}, "
        f"{found['ratio']:.3f} of the bare pass's {found['bare']:.3g}"
    )


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.detector_speed")
