"""A store or a labelled folder in; what is broken, doubled or unusable in it, and the cure, out.

    diffdoctor data check store
    diffdoctor data check store --keep sound_store

Every byte is read and held against its digest; a shard's index that is lost is made again from its
tar. Exit code 1 where anything is wrong; with --keep what is right is copied into a new store, and
the rest listed beside it with its reason.
"""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from pydantic import Field
from tqdm import tqdm

import core.config
from core.errors import UserError
from core.run import plain
from core.samples import Sample
from core.shard_index import mend_indices
from core.shard_writer import ShardWriter
from core.storage import check_writable, write_atomic
from data_balancing.entries import same_shape
from data_balancing.formats.plain import strays
from data_balancing.looks import Seen, phash, pixels
from detector.groups import Groups
from detector.sources import FolderSamples, open_source

SHOWN = 20
FEW = 32
"""Pixels of the shorter side below which no detector sees anything."""


class Config(core.config.Config):
    """Check data before anything learns from them."""

    data: Annotated[Path, tyro.conf.Positional, core.config.placed("STORE")]
    """A store, or a folder with images/ and masks/ (and real/)."""
    keep: Path | None = None
    """New store for all that is right, each with its hashes."""
    smallest: int = Field(FEW, ge=1)
    """Pixels that an image's shorter side should have."""
    json_file: core.config.JsonFile = None
    """Also write the findings here."""


class Finding(NamedTuple):
    key: str
    reason: str
    """What is wrong, and how to mend it."""


def main(config: Config) -> int | None:
    if config.keep is not None:
        check_writable(config.keep)
        if config.keep.resolve() == config.data.resolve():
            raise UserError(f"{config.keep} is what is checked: name another folder by --keep.")
    for name in mend_indices(config.data):
        print(f"{name} was missing or damaged: it was made again from its tar, to the byte.")
    samples = open_source(config.data, masked=False)
    if not len(samples):
        raise UserError(f"{config.data} holds no sample: its writing was stopped, begin it again.")
    findings, groups, seen, keys = [], Groups(), Seen(), set()
    keep = nullcontext() if config.keep is None else ShardWriter(config.keep, name="kept")
    with keep as writer:
        for i in tqdm(range(len(samples)), "check"):
            try:
                sample = hashed(samples[i])
            except UserError as error:
                findings.append(Finding(f"number {i}", str(error)))
                continue
            wrong = faults(sample, seen.key_of(sample.record.pixels), config.smallest)
            if sample.key in keys:
                wrong.append("another one has its name, and its mask if it has one: rename it.")
            keys.add(sample.key)
            findings += [Finding(sample.key, reason) for reason in wrong]
            if not wrong:
                seen.add(sample.record.pixels, sample.key)
                groups.add(sample.record)
                if writer is not None:
                    writer.write(sample)
    if isinstance(samples, FolderSamples):
        findings += [Finding(name, reason) for name, reason in strays(config.data)]
    return report(config, findings, groups.sizes())


def hashed(sample: Sample) -> Sample:
    """With the hashes of its image in the record."""
    found = {"pixels": pixels(sample.image), "phash": phash(sample.image)}
    return replace(sample, record=sample.record.model_copy(update=found))


def faults(sample: Sample, twin: str | None, smallest: int) -> list[str]:
    """What is wrong with a sample that can be read, each with its cure."""
    (height, width), wrong = sample.image.shape[:2], []
    if min(height, width) < smallest:
        wrong.append(f"it has {width}x{height} pixels: give one of {smallest} at least.")
    if sample.image.min() == sample.image.max():
        wrong.append("it is of one colour: an empty file was saved in its place, replace it.")
    if twin is not None:
        wrong.append(f"it has the same pixels as {twin}: one of both is enough.")
    if sample.mask is not None:
        wrong += mask_faults(sample.mask, height, width)
        if sample.record.source == "real" and sample.mask.any():
            wrong.append("it is real, but its mask marks something: make it human, or drop it.")
    return wrong


def mask_faults(mask: np.ndarray, height: int, width: int) -> list[str]:
    if not same_shape(mask.shape, (height, width)):
        size = f"{mask.shape[1]}x{mask.shape[0]}"
        return [f"its mask is {size}, of another shape than its {width}x{height}: paint it anew."]
    if mask.max() == 1:
        return ["its mask has no value above 1 of 255: save marked pixels as 255."]
    return []


def report(config: Config, findings: list[Finding], groups: np.ndarray) -> int | None:
    figures = {
        "sound": int(groups.sum()),
        "groups": len(groups),
        "largest_group": int(groups.max(initial=0)),
        "findings": [finding._asdict() for finding in findings],
    }
    print(f"{figures['sound']} right, {len({key for key, _ in findings})} wrong.")
    for finding in findings[:SHOWN]:
        print(f"  {finding.key}: {finding.reason}")
    if len(findings) > SHOWN:
        print(f"  and {len(findings) - SHOWN} more: --json FILE lists all.")
    print(
        f"{len(groups)} groups by prompt and look, which a split keeps together; the largest has "
        f"{figures['largest_group']}."
    )
    text = (json.dumps(plain(figures), indent=2) + "\n").encode()
    if config.json_file:
        write_atomic(config.json_file, text)
    if config.keep is not None:
        write_atomic(config.keep / "quarantine.json", text)
    return 1 if findings else None


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m data_balancing.check")
