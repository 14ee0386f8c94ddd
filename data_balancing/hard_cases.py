"""A store and a detector in; the keys of the images that people should label next out.

    diffdoctor data hard-cases store --detector runs/detector --n 2000 --out hard
    diffdoctor data annotate store --keys hard/keys.txt --tool cvat --out to_annotate

Hard is where two detectors disagree (query by committee; Seung et al., COLT 1992), or where one of
them wavers between views of the same image. The budget goes first to the categories with the fewest
labels, and no two images of one prompt or look are taken while there are others.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from pydantic import Field
from tqdm import tqdm

import core.config
from core.contracts import ArtifactMap, Detector, Images
from core.errors import UserError
from core.heatmap import overlay
from core.images import contact_sheet, from_uint8, write_image
from core.samples import Record
from core.shards import ShardStore
from core.storage import check_writable, write_atomic
from data_balancing.batches import batches, decoded
from data_balancing.choosing import Candidate, choose
from data_balancing.preview import small
from detector.augment import gaussian_blur, scale_contrast
from detector.groups import group_texts
from detector.measure import device, predict
from detector.segformer import freeze
from detector.storage import load_detector

SHEET = 40
WORST = 0.01
"""Share of an image's pixels over which its scores are averaged: small faults count like large."""


class Config(core.config.Config):
    """Choose what people should label."""

    store: Annotated[Path, tyro.conf.Positional, core.config.placed("STORE")]
    """Store with the images; those that have a mask by a person are passed over."""
    detector: Path
    """Folder of the detector, or of the run that trained it."""
    out: Path
    """Folder for keys.txt, scores.csv and sheet.png."""
    second_detector: Path | None = None
    """Another one, best of other weights and data: where the two disagree is hard."""
    labelled: tuple[Path, ...] = ()
    """Stores of what is labelled already: categories that have little of it come first."""
    n: int = Field(2000, ge=1)
    """The budget: images to label."""
    batch: int = Field(16, ge=1)
    """Images that a detector sees at once."""
    device: str = "auto"
    """`auto`, or a torch device."""


class Score(NamedTuple):
    """Of one image, both in 0..1: the mean over its worst pixels."""

    disagreement: float
    """|p - q| of two detectors; 0 without a second."""
    wavering: float
    """Standard deviation of p over views of the image."""


def main(config: Config) -> None:
    check_writable(config.out)
    store, labels = ShardStore(config.store), labels_by_category(config.labelled)
    folders = [config.detector, *filter(None, [config.second_detector])]
    detectors = [freeze(load_detector(f)).to(device(config.device)) for f in folders]
    records = store.records()
    open_ = [i for i in range(len(store)) if needs_label(records[i])]
    if not open_:
        raise UserError(f"{config.store} holds nothing that a person has not labelled.")
    place = device(config.device)
    scores = dict(scored(store, open_, detectors, config.batch, place))
    candidates = rated([(i, records[i], scores[i]) for i in open_])
    chosen = choose(candidates, config.n, labels)
    write(config.out, store, chosen, scores, detectors[0])
    shares = Counter(records[i].category or "(none)" for i in chosen)
    print(f"{config.out}: {len(chosen)} of {len(open_)} images")
    for category, number in shares.most_common():
        print(f"  {category}: {number}")


def needs_label(record: Record) -> bool:
    """Neither labelled by a person, nor real, nor a render whose truth is known."""
    return record.source == "pseudo"


def labels_by_category(folders: Sequence[Path]) -> Counter[str]:
    records = (record for folder in folders for record in ShardStore(folder).records())
    return Counter(r.category for r in records if r.source in ("human", "hard"))


def scored(
    store: ShardStore,
    positions: Sequence[int],
    detectors: Sequence[Detector],
    batch: int,
    place: torch.device,
) -> Iterator[tuple[int, Score]]:
    """In the order of the batches."""
    with tqdm(total=len(positions), desc="look") as bar:
        for part in batches(decoded(store, positions, batch), batch):
            images: Images = from_uint8(np.stack([one.image for one in part])).to(place)
            for one, score in zip(part, scores_of(images, detectors), strict=True):
                yield one.position, score
            bar.update(len(part))


@torch.inference_mode()
def scores_of(images: Images, detectors: Sequence[Detector]) -> list[Score]:
    own = [detectors[0](view) for view in views(images)]
    wavering = worst(torch.stack(own).std(0, correction=0))
    others = [detector(images) for detector in detectors[1:]]
    apart = [worst((own[0] - other).abs()) for other in others] or [torch.zeros(len(images))]
    return [Score(float(a), float(w)) for a, w in zip(apart[0], wavering, strict=True)]


def views(images: Images) -> list[Images]:
    """The image itself; softer, paler and darker: nothing moves, so that maps can be compared."""
    sigma = images.new_full((len(images), 1, 1, 1), 0.7)
    pale = images.new_full((len(images), 1, 1, 1), 0.8)
    return [
        images,
        gaussian_blur(images, sigma),
        scale_contrast(images, pale),
        (images - 0.06).clamp(0, 1),
    ]


def worst(maps: ArtifactMap) -> torch.Tensor:
    """Mean of the largest values of each map: (b,)."""
    flat = maps.flatten(1)
    return flat.topk(max(1, round(WORST * flat.shape[1])), dim=1).values.mean(1).cpu()


def rated(found: Sequence[tuple[int, Record, Score]]) -> list[Candidate]:
    """Hardness is the sum of an image's ranks by either score, so that neither scale rules."""
    ranks = sum(ranked([score[k] for _, _, score in found]) for k in range(len(Score._fields)))
    groups = group_texts(record for _, record, _ in found)
    return [
        Candidate(i, float(rank), record.category, group)
        for (i, record, _), rank, group in zip(found, np.asarray(ranks), groups, strict=True)
    ]


def ranked(values: Sequence[float]) -> np.ndarray:
    """In 0..1; equal values have equal ranks."""
    distinct, place = np.unique(np.array(values), return_inverse=True)
    return place / max(1, len(distinct) - 1)


def write(
    out: Path,
    store: ShardStore,
    chosen: Sequence[int],
    scores: dict[int, Score],
    detector: Detector,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("key", "category", *Score._fields))
    for i in chosen:
        figures = (f"{value:.6f}" for value in scores[i])
        table.writerow((store.keys[i], store.record(i).category, *figures))
    write_atomic(out / "scores.csv", text.getvalue().encode())
    write_image(out / "sheet.png", sheet(store, chosen[:SHEET], detector))
    keys = "".join(f"{store.keys[i]}\n" for i in chosen)
    write_atomic(out / "keys.txt", keys.encode())  # the last: it says that the rest is there


def sheet(store: ShardStore, chosen: Sequence[int], detector: Detector) -> torch.Tensor:
    rows, labels = [], []
    for i in chosen:
        image = from_uint8(store[i].image[None])
        rows.append([small(image)[0], small(overlay(image, predict(detector, image, 1)))[0]])
        labels.append(" | ".join(filter(None, (store.keys[i], store.record(i).category))))
    return contact_sheet(rows, labels, ("image", "detector"))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m data_balancing.hard_cases")
