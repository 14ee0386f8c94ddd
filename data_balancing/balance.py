"""A store, its tags and a detector in; which categories the detector judges oddly out.

    diffdoctor data balance shards --tags tags.jsonl --detector runs/detector --out balance

OUT/balance.json, OUT/report.html and OUT/scores.jsonl, by which running again sees no image twice.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field
from rich.console import Console
from rich.table import Table

import core.config
from core.errors import UserError
from core.shards import ShardStore
from core.storage import check_writable, write_atomic
from data_balancing.balance_report import Case, render
from data_balancing.categories import Figures, by_category, figures, overall, read_tags
from data_balancing.scores import Scanner, Scored
from data_balancing.taxonomy import load_taxonomy
from detector.measure import device
from detector.segformer import freeze
from detector.storage import digest, load_detector

FORMAT = "diffdoctor-balance-1"


class Config(core.config.Config):
    """Settings of one balance."""

    store: Annotated[Path, tyro.conf.Positional, core.config.placed("STORE")]
    """Folder of shards."""
    tags: Path
    """What `diffdoctor data tag` wrote of it."""
    detector: Path
    """Folder of the detector, or of the run that trained it."""
    out: Path
    """Folder of the report."""
    taxonomy: Path | None = None
    """The categories of the tags, where they are your own."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """From this maximum an image counts as broken."""
    q: float = Field(0.05, gt=0, lt=1)
    """Share of the categories found that may be found by chance."""
    size: int | None = Field(None, ge=32)
    """Side, in pixels, at which the detector sees every image. None: its own."""
    pictures: int = Field(6, ge=0, le=50)
    """Images shown of each category that stands out."""
    batch: int = Field(8, ge=1)
    """Images that the detector sees at once."""
    device: str = "auto"
    """`auto`, or a torch device."""


def main(config: Config) -> None:
    """Look at every image, compare the categories, write the report."""
    taxonomy, store = load_taxonomy(config.taxonomy), ShardStore(config.store)
    tags = read_tags(config.tags, taxonomy)
    if not any(key in tags for key in store.keys):
        raise UserError(f"{config.tags} tags no image of {config.store}; name its own tags.")
    detector = freeze(load_detector(config.detector)).to(device(config.device))
    _prepare(config.out)
    scanner = Scanner(
        detector,
        digest(config.detector),
        config.out / "scores.jsonl",
        threshold=config.threshold,
        size=config.size,
    )
    images = [image for image in scanner.scan(store, config.batch) if image.key in tags]
    groups = by_category(images, tags, taxonomy)
    found = figures(images, groups, config.threshold, config.q)
    whole = overall(images, config.threshold)
    written = summary(found, whole, scanner.how, config.q, taxonomy.digest)
    write_atomic(config.out / "balance.json", (json.dumps(written, indent=2) + "\n").encode())
    cases = {
        name: show(store, scanner, [images[i] for i in groups[name]], one, config.pictures)
        for name, one in found.items()
        if one.anomaly
    }
    page = render(found, whole, cases, threshold=config.threshold, q=config.q)
    write_atomic(config.out / "report.html", page.encode())
    Console().print(to_table(found))


def summary(
    found: Mapping[str, Figures],
    whole: dict[str, Any],
    how: dict[str, Any],
    q: float,
    taxonomy: str,
) -> dict[str, Any]:
    """What `balance.json` says."""
    sides = {side: [n for n, one in found.items() if one.anomaly == side]
             for side in ("high", "low")}  # fmt: skip
    return {
        "format": FORMAT,
        **how,
        "q": q,
        "taxonomy": taxonomy,
        "overall": whole,
        "anomalous": sides,
        "categories": {name: one.model_dump(mode="json") for name, one in found.items()},
    }


def show(
    store: ShardStore, scanner: Scanner, images: Sequence[Scored], figures: Figures, n: int
) -> list[Case]:
    """The worst images of a category: of a high one the surest, known sound ones first; of a low
    one those in which least was seen, known sound ones last."""
    high = figures.anomaly == "high"
    ranked = sorted(images, key=lambda s: (s.sound != high, -s.score.max if high else s.score.max))
    places, cases = {key: i for i, key in enumerate(store.keys)}, []
    for one in ranked[:n]:
        picture, map = scanner.map(store[places[one.key]].image)
        cases.append(Case(one.key, one.prompt, one.sound, one.score.max, picture, map))
    return cases


def to_table(found: Mapping[str, Figures]) -> Table:
    """The categories for the terminal, those that stand out first."""
    odd = sum(one.anomaly is not None for one in found.values())
    title = f"{len(found)} categories, {odd} of them judged oddly"
    table = Table("category", "images", "broken", "shrunk", "p adjusted", "", title=title)
    for name, one in sorted(found.items(), key=lambda row: row[1].anomaly is None):
        p = "-" if one.p_adjusted is None else f"{one.p_adjusted:.2g}"
        shares = f"{one.rate:.0%}", f"{one.rate_shrunk:.0%}"
        table.add_row(name, str(one.n), *shares, p, one.anomaly or "")
    return table


RESULTS = {"balance.json", "report.html", "scores.jsonl"}


def _prepare(out: Path) -> None:
    check_writable(out)
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    strange = sorted(name for name in there - RESULTS if name[0] != ".")
    if strange:
        raise UserError(f"--out {out} holds other files ('{strange[0]}'); choose another folder.")
    out.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor data balance")
