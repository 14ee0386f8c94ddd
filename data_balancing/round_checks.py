"""Settings of the rounds in; checked before anything heavy, and a folder of their own, out."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from base_models.load import locate
from core.digests import data_digest, model_name
from core.errors import UserError
from core.explain import unknown_name
from core.shards import ShardStore, filled
from core.storage import check_writable, write_atomic
from data_balancing.annotator_command import check_command
from data_balancing.asking import check_address
from data_balancing.prompt_file import read_prompt_lines
from data_balancing.round_settings import Config
from data_balancing.synthesize import check_drawing
from data_balancing.taxonomy import Taxonomy, load_taxonomy
from data_balancing.teacher import unlabelled
from detector.groups import near_pairs
from detector.quotas import check_shares
from detector.sources import LabelledShards, open_data
from detector.storage import digest

NOTE = "round.json"
FREE = {"out", "rounds", "annotator", "endpoint", "device"}
"""Settings that may differ when a command goes on: no image, label or weight follows from them, but
for the annotator, who may be replaced."""


def check(config: Config) -> None:
    """Every input, before the first image is drawn; raises `UserError`."""
    digest(config.detector)
    drawing = config.draw
    check_drawing(config.base, drawing.height, drawing.width, drawing.guidance, drawing.steps)
    check_writable(config.out)
    if config.endpoint is not None:
        check_address(config.endpoint)
    taxonomy = load_taxonomy(config.taxonomy)
    if config.prompt_list is not None:
        check_list(config.prompt_list, taxonomy)
    if config.pool is not None:
        filled(config.pool)
    if config.annotator:
        check_command(config.annotator)
    check_labelled(config.labelled)
    check_held_out(config.held_out, config.labelled)
    if config.train.quotas:
        check_shares(config.train.quotas, sources(config))


def check_list(path: Path, taxonomy: Taxonomy) -> None:
    for line in read_prompt_lines(path):
        if line.category not in taxonomy.parents:
            raise UserError(unknown_name(line.category, taxonomy.parents, f"{path} (or taxonomy)"))


def check_labelled(labelled: tuple[Path, ...]) -> None:
    """Each has something to learn from; what is unlabelled is passed over."""
    for folder in labelled:
        LabelledShards(ShardStore(folder))


def sources(config: Config) -> set[str]:
    """Of all that a round's detector learns from."""
    stores = [LabelledShards(ShardStore(folder)) for folder in config.labelled]
    found = {str(record.source) for store in stores for record in store.records()}
    if config.hard:
        found.add("hard")
    if config.hard < config.synthetic or (config.pool and has_unlabelled(config.pool)):
        found.add("pseudo")
    return found


def has_unlabelled(folder: Path) -> bool:
    store = ShardStore(folder)
    return any(unlabelled(store, [i]) for i in range(len(store)))


def check_held_out(held_out: Path, labelled: tuple[Path, ...]) -> None:
    """Labelled by people or known to be sound, and no image of it in the training data.

    Two images are one where their pixels are, or nearly, by the hashes of their records; by key and
    prompt where a record has no hash.
    """
    records = list(open_data((held_out,))[1])
    if any(record.source == "pseudo" for record in records):
        raise UserError(f"{held_out} holds images that no person has labelled; leave them out.")
    pixels = {record.pixels for record in records if record.pixels}
    named = {(record.key, record.prompt) for record in records}
    unhashed = {(record.key, record.prompt) for record in records if not record.pixels}
    looks = [(record.key, int(record.phash, 16)) for record in records if record.phash]
    first = len(looks)  # of the training data
    for folder in labelled:
        for record in ShardStore(folder).records():
            names = unhashed if record.pixels else named
            if record.pixels in pixels or (record.key, record.prompt) in names:
                raise UserError(
                    f"{record.key} is in --held-out and in {folder}: what is scored on must never "
                    "be trained on; take it out of one."
                )
            if record.phash:
                looks.append((record.key, int(record.phash, 16)))
    for pair in near_pairs(np.array([look for _, look in looks], np.uint64)):
        a, b = sorted(pair)
        if a < first <= b:
            raise UserError(
                f"{looks[a][0]} of --held-out looks like {looks[b][0]} of --labelled: what is "
                "scored on must never be trained on; take one out."
            )


def claim(config: Config) -> None:
    """Make the folder, or find the same settings and content there; `UserError` for others.

    More rounds may be asked for, and another annotator may go on.
    """
    path, now = config.out / NOTE, _said(config)
    if path.is_file():
        held = _read(path)
        differ = sorted(name for name in {*held, *now} if held.get(name) != now.get(name))
        if differ == ["held_out"]:
            raise UserError(
                f"{config.held_out} does not hold the images and masks that {config.out} was begun "
                "with, and scores on others do not compare: restore it, or choose another --out."
            )
        if differ:
            raise UserError(
                f"{config.out} was begun with other settings ({', '.join(differ)} differ); use the "
                "same to go on, or choose another --out."
            )
        return
    if config.out.is_dir() and any(one.name[0] != "." for one in config.out.iterdir()):
        raise UserError(f"{config.out} holds other files; choose another --out.")
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(now, indent=2) + "\n").encode())


def _said(config: Config) -> dict[str, Any]:
    """What all rounds follow from: teacher, base and held-out set by content, not by place."""
    said = config.model_dump(mode="json", exclude=FREE)
    content = {
        "detector": digest(config.detector),
        "base": model_name(locate(config.base)),
        "held_out": data_digest(config.held_out),
    }
    if config.second_detector is not None:
        content["second_detector"] = digest(config.second_detector)
    paths = {
        name: str(path.resolve())
        for name in ("pool", "prompt_list", "taxonomy")
        if (path := getattr(config, name)) is not None
    }
    return {**said, **content, **paths, "labelled": [str(p.resolve()) for p in config.labelled]}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; choose another --out.") from error
