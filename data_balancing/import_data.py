"""A published data set or a folder of one's own in, samples in shards out; broken ones set aside.

    diffdoctor data import pal4vst PAL4VST --out store
    diffdoctor data import richhf RichHF-18K --images pick-a-pic --out store
    diffdoctor data import photographs holidays --out store --name holidays

Several sets may go into one store, each under a name. The same command again takes up what is new
or was set aside and mended, and repeats nothing: OUT/NAME.quarantine.jsonl lists what was left out,
and why. Of an image that is in the store a new mask is not taken up.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field, ValidationError, field_validator
from tqdm import tqdm

import core.config
from core.errors import UserError
from core.explain import unknown_name
from core.samples import Record, Sample, safe_key
from core.shard_writer import ShardWriter, check_members, encoded
from core.shards import ShardStore
from core.storage import alone, check_writable, read_json, write_atomic
from data_balancing.entries import Entry, Labelled
from data_balancing.formats import FORMATS
from data_balancing.looks import Seen, phash, pixels

SHOWN = 5
"""Reasons that are printed; the file has them all."""


class Config(core.config.Config):
    """Bring a data set into a store."""

    format: Annotated[str, tyro.conf.Positional, core.config.placed("FORMAT")] = Field(
        description="How the set lies on the disk:"
        + "".join(f"\n- {name}: {form.what}" for name, form in FORMATS.items())
    )
    path: Annotated[Path, tyro.conf.Positional, core.config.placed("SET")]
    """The set as it was downloaded: a folder, or its one file."""
    out: Path
    """Folder of the store; it may hold other sets."""
    images: Path | None = None
    """Folder of its images, where they come apart from it."""
    name: str = Field("", pattern=r"^[A-Za-z0-9_-]{0,33}$")
    """Of the set in the store; by default that of the format."""
    split: str = Field("", pattern=r"^[A-Za-z0-9_-]{0,33}$")
    """Take this part alone, where the set is published in parts (`train`, `test`)."""
    licence: str = ""
    """Of the images, for their records; by default the published one."""
    limit: int | None = Field(None, ge=1)
    """Look at most at so many of its images."""
    shard_size: int = Field(1000, ge=1)
    """Images of a shard."""

    @field_validator("format")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in FORMATS:
            raise ValueError(unknown_name(name, FORMATS, "the formats"))
        return name


def main(config: Config) -> int | None:
    """Exit code 1 where nothing could be used."""
    form = FORMATS[config.format]
    if not config.path.exists():
        raise UserError(f"there is no {config.path}; check the path.")
    if form.needs_images and config.images is None:
        raise UserError(f"{config.format} comes without its images: name their folder by --images.")
    if config.images is not None and not config.images.is_dir():
        raise UserError(f"there is no folder {config.images}; check --images.")
    check_writable(config.out)
    entries = begun(form.read(config.path, config.images), config.path, config.split)
    name, licence = config.name or config.format, config.licence or form.licence
    config.out.mkdir(parents=True, exist_ok=True)
    busy = f"another import writes into {config.out}: wait for it, or name another --out."
    with alone(config.out / ".import.lock", busy):  # else both would take an image that both have
        claim(config.out, name, config.format, config.path)
        counts, aside = bring_in(config, entries, name, licence)
        lines = "".join(json.dumps(line) + "\n" for line in aside)
        write_atomic(config.out / f"{name}.quarantine.jsonl", lines.encode())
        if not any(config.out.glob(f"{name}-*.tar")):  # the name is free for another path
            source_note(config.out, name).unlink(missing_ok=True)
    tell(name, counts, aside, config.out)
    return None if counts else 1


def bring_in(
    config: Config, entries: Iterator[Entry], name: str, licence: str
) -> tuple[Counter[str], list[dict[str, str]]]:
    """How many were taken, of each kind, and what was set aside, with the reason."""
    aside: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    with ShardWriter(config.out, config.shard_size, name) as writer:
        seen = Seen(known(config.out))
        for i, entry in enumerate(tqdm(entries, f"import {name}", unit="image")):
            if config.limit is not None and i >= config.limit:
                break
            key = safe_key(f"{name}-{entry.name}")
            if key in writer:
                counts["there already"] += 1
                continue
            try:
                sample = sample_of(key, entry, licence, seen)
                members = encoded(sample)
                check_members(key, members)
            except UserError as error:
                aside.append({"name": entry.name, "reason": str(error)})
                continue
            writer.write_encoded(key, members)  # a full disk is no fault of the image
            seen.add(sample.record.pixels, key)
            counts[kind(sample)] += 1
    return counts, aside


def begun(entries: Iterator[Entry], path: Path, split: str) -> Iterator[Entry]:
    """Those of a split, once the first is there: `UserError` for what is no such set, or empty."""
    chosen = (
        one for one in entries if one.name.startswith((f"{split}/", f"{split}:")) or not split
    )
    first = next(chosen, None)
    if first is None:
        what = f"images of a split {split!r}" if split else "images"
        raise UserError(f"{path} holds no {what}; check the path.")
    return chain([first], chosen)


def claim(out: Path, name: str, form: str, path: Path) -> None:
    """One name in a store is one set: `UserError` for another one, whose keys might be the same."""
    note, said = source_note(out, name), {"format": form, "path": str(path.resolve())}
    if note.is_file():
        held = read_json(note)
        if held != said:
            raise UserError(
                f"{out} has a set {name!r} from {held.get('path')}: give this one a --name of its "
                f"own (or remove {note}, if it was moved)."
            )
        return
    write_atomic(note, (json.dumps(said, indent=2) + "\n").encode())


def source_note(out: Path, name: str) -> Path:
    return out / f"{name}.source.json"


def known(folder: Path) -> list[Record] | Any:
    """Records of what the store holds; nothing where there is none yet."""
    return ShardStore(folder).records() if any(folder.glob("*.manifest.jsonl")) else []


def sample_of(key: str, entry: Entry, licence: str, seen: Seen) -> Sample:
    """Raises `UserError` with the reason for which an image is set aside."""
    labelled = entry.read()
    digest = pixels(labelled.image)
    twin = seen.key_of(digest)
    if twin is not None:
        raise UserError(f"it has the same pixels as {twin}, which is there: one of both is enough.")
    record = record_of(key, labelled, licence, digest)
    return Sample(key, labelled.image, labelled.mask, record, labelled.reference)


def record_of(key: str, labelled: Labelled, licence: str, digest: str) -> Record:
    made = labelled.reference is not None
    hashes = {"pixels": digest, "phash": phash(labelled.image)}
    found: dict[str, Any] = {"key": key, "referenced": made, **hashes}
    try:
        return Record(**{"source": "human", "licence": licence, **labelled.said, **found})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(
            f"what is said of it is no record ({fault['loc'][0]}: {fault['msg']}); mend its line."
        ) from error


def kind(sample: Sample) -> str:
    if sample.mask is None:
        return "unlabelled"
    return "marked" if sample.mask.any() else "sound"


def tell(name: str, counts: Counter[str], aside: list[dict[str, str]], out: Path) -> None:
    said = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
    print(f"{name}: {said or 'nothing'}; {len(aside)} set aside.")
    for line in aside[:SHOWN]:
        print(f"  {line['name']}: {line['reason']}")
    if aside:
        print(f"  {out / name}.quarantine.jsonl lists all; mend them and run the command again.")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m data_balancing.import_data")
