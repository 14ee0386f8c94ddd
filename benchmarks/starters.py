"""Train the two detectors of FLUX's images that ship, from which the demo's own start.

    python -m benchmarks.starters --which first
    python -m benchmarks.starters --which second --labelled 2500 --older 300 --steps 3000

Each learns from labelled images of all grades, planted faults and sound renders, and shares no
image with the other: the first may teach a treatment, the second only watches. So the first is
hardened against steps along its gradient, its weights drawn back part of the way to those before,
which are more precise (Wortsman et al., arXiv 2109.01903), and, if asked, aligned on renders that
the newest grade has redrawn. Both are written to `miniature/detectors/`. What ships went on from
earlier weights (`--start`), with the settings that its card names.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import core.config
import detector.train
from core.errors import UserError
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from detector.measure import device as device_of
from detector.storage import load_detector, read_description, save_detector
from diffdoctor import demo_data
from diffdoctor.demo import checked
from diffdoctor.demo_settings import HARDENED
from miniature.bases import DETECTORS, GRADES, base_folder
from miniature.prompts import category_of, split
from miniature.render import fault_samples, open_autoencoder


class Config(core.config.Config):
    """How much the two detectors learn from."""

    out: Path = Path("runs/starters")
    """Folder of both; the same command again takes up where it stopped."""
    which: tuple[Literal["first", "second"], ...] = ("first", "second")
    """Two machines, or two cores, may train one each."""
    start: Path | None = None
    """Folder with a `first` and a `second` to go on from: earlier ones, for another law or base."""
    labelled: int = Field(5000, ge=1)
    """Images of the newest grade that the oracle labels."""
    older: int = Field(500, ge=0)
    """Images of each older grade."""
    more: int = Field(0, ge=0)
    """Further images of the newest grade, of all categories but bicycles."""
    sampling_steps: int = Field(4, ge=1)
    """T, of the base."""
    also: tuple[Path, ...] = ()
    """Further shard folders, for one of the two, such as an earlier base's: as true."""
    faults: int = Field(800, ge=1)
    """Planted faults for each."""
    renders: int = Field(3000, ge=1)
    """Sound renders for each."""
    batch: int = Field(16, ge=1)
    """Images of a step."""
    steps: int = Field(5000, ge=1)
    """Of a detector's training."""
    hardened_steps: int = Field(500, ge=1)
    """Further ones, against what deceives a detector."""
    hardened_share: float = Field(1.0, ge=0, le=1)
    """How far from the weights before hardening to those after it."""
    aligned_steps: int = Field(0, ge=0)
    """A treatment's own detector is aligned in the demo; here it costs precision early."""
    redrawn: int = Field(9000, ge=1)
    """Renders that the newest grade redraws, if the first detector is aligned here."""
    device: str = "auto"
    """`auto`, or a torch device."""


SEEDS = {"first": 100, "second": 200}
SMALL_FLAWS = ("sign", "scenery", "face", "hand")
"""Bicycles' flaws are large: they need fewer images for as many labelled pixels."""
# No shift and no scale: a hand of another size is no hand of this world.
LEARNING: Mapping[str, Any] = {
    "loss": "bce",
    "optimizer": "muon",
    "learning_rate": 4e-3,
    "augmentation": {"appearance": 0.5, "adversarial": 0, "move": 0, "shrink": 0, "patches": 0.5},
}
HARDENING: Mapping[str, Any] = {
    **LEARNING,
    "learning_rate": 2e-3,
    "warmup": 30,
    "ema": 0.98,
    "augmentation": {"appearance": 0.6, **HARDENED},
}
ALIGNING: Mapping[str, Any] = {**HARDENING, "alignment": 1.0}


def main(config: Config) -> int | None:
    if config.start:
        for name in config.which:
            read_description(config.start / name)  # refuses what is no detector, before drawing
    if config.also and len(config.which) > 1:
        raise UserError("the two detectors share no image: give --which beside --also.")
    for folder in config.also:
        ShardStore(folder)  # refuses what is no store, before drawing
    for name in config.which:
        folder, seed = config.out / "data" / name, SEEDS[name]
        write_data(config, folder, seed)
        stages = {name: (LEARNING, config.steps)}
        given: dict[str, Any] = {"data": (folder, *config.also), "seed": seed}
        given |= {"device": config.device, "batch": config.batch}
        if config.start:
            given["init"] = config.start / name
        if name == "first":
            stages["hardened"] = HARDENING, config.hardened_steps
        if name == "first" and config.aligned_steps:
            redrawn = config.out / "data/redrawn"
            base, said = str(base_folder("newest")), split()["train"]
            demo_data.write_redrawn(
                redrawn, base, said, config.redrawn, config.sampling_steps, seed
            )
            aligning = {**ALIGNING, "alignment_data": (redrawn,)}
            stages["aligned"] = aligning, config.aligned_steps
        for stage, (settings, steps) in stages.items():
            code = train({**settings, **given, "out": config.out / stage}, steps)
            if code:
                return code
            given["init"] = config.out / stage / "detector"
            if stage == "hardened":
                given["init"] = between(config.out / name, config.out / stage, config)
        publish(config, name, given["init"])
    return None


def write_data(config: Config, folder: Path, seed: int) -> None:
    """Labelled images of every grade, planted faults and sound renders."""
    place, newest, said = device_of(config.device), str(base_folder("newest")), split()["train"]
    at_once = 1000 if place.type == "cuda" else demo_data.BATCH  # less does not fill a GPU
    generate = partial(
        demo_data.write_generated, folder, steps=config.sampling_steps, device=place, batch=at_once
    )
    for grade in GRADES:
        n = config.labelled if grade == "newest" else config.older
        generate(base=str(base_folder(grade)), prompts=said, n=n, seed=seed)
    small = [prompt for prompt in said if category_of(prompt) in SMALL_FLAWS]
    generate(base=newest, prompts=small, n=config.more, seed=seed + 1)
    write_procedural(folder, newest, config.faults, config.renders, seed)


def train(settings: Mapping[str, Any], steps: int) -> int | None:
    values = {**settings, "steps": steps, "valid_every": steps}
    return detector.train.main(checked(detector.train.Config, values))


def between(before: Path, after: Path, config: Config) -> Path:
    """Write the detector between those of two runs; returns its folder."""
    detector, hardened = load_detector(before), load_detector(after).state_dict()
    for key, tensor in detector.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(hardened[key], config.hardened_share)  # in place: the detector's own
    return save_detector(detector, config.out / "between", read_description(after).card)


def publish(config: Config, name: str, run: Path) -> None:
    """Write a run's detector where it ships, in fp16: half the bytes in every clone."""
    unused = set() if config.aligned_steps else {"redrawn"}
    how = config.model_dump(
        mode="json", exclude={"out", "which", "start", "also", "device"} | unused
    )
    how["also"] = sum(len(ShardStore(folder)) for folder in config.also)
    how["start"] = "earlier weights" if config.start else "random weights"
    card: dict[str, Any] = {"made_by": f"python -m benchmarks.starters --which {name}"}
    card["settings"] = how
    card |= read_description(run).card
    save_detector(load_detector(run).half(), DETECTORS / name, card)


def write_procedural(folder: Path, newest: str, faults: int, renders: int, seed: int) -> None:
    """Planted faults and sound renders, both as the base's autoencoder shows them."""
    with ShardWriter(folder, shard_size=200, name="fault") as writer:
        for sample in fault_samples(faults, seed, open_autoencoder(newest)):
            writer.write(sample)
    demo_data.write_renders(folder, newest, split()["train"], renders, seed)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.starters")
