"""Take annotations back: a tool's export and the store it came from in, labelled shards out.

    diffdoctor data annotated EXPORT --store STORE --out LABELLED

LABELLED is a shard store of the annotated images: source "human", the label the mean of the
annotators. Beside the shards: annotators/NAME/KEY.png and annotations.jsonl (every mask, who, when,
with what), agreement.json. The same command again adds further images and repeats nothing; all who
annotated an image are read at once (several exports in one folder).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

import core.config
from core.errors import UserError
from core.samples import Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from core.storage import check_writable, write_atomic
from data_balancing.agreement import Agreement, agreement, soft_label
from data_balancing.annotation import TOOLS
from data_balancing.annotation.cases import Annotation, Size, exports
from data_balancing.annotators import keep, kept, read_masks

SUFFIXES = {".xml": "cvat", ".zip": "cvat", ".json": "coco"}


class Config(core.config.Config):
    """Settings of one return."""

    exported: Annotated[Path, tyro.conf.Positional, core.config.placed("EXPORT")]
    """The file that the tool exported, or a folder of several of one tool."""
    store: Path
    """The shard store that the images were taken from."""
    out: Path
    """Folder of the labelled shards."""
    tool: Literal["auto", "label_studio", "cvat", "coco", "png"] = "auto"
    """What they painted with; by default what the export looks like."""
    source: Literal["human", "hard"] = "human"
    """What the records say of it: `hard` tells hard cases apart, for quotas."""
    tool_version: str = ""
    """As the tool shows it; most exports do not say."""


def main(config: Config) -> None:
    store = ShardStore(config.store)
    tool = recognised(config.exported) if config.tool == "auto" else config.tool
    if config.out.resolve() == config.store.resolve():
        raise UserError(f"--out {config.out} is the store itself; name another folder.")
    check_writable(config.out)
    check_source(config.out, config.source)
    annotations = TOOLS[tool].read(config.exported, Sizes(store))
    with ShardWriter(config.out) as writer:
        added = keep(versioned(annotations, config.tool_version), config.out, writer)
        masks = kept(config.out)
        if not masks:
            raise UserError(f"{config.exported} holds no finished annotation; annotate first.")
        written = sum(map(writer.write, labelled(store, masks, writer, config.source)))
    figures = agreement(read_masks(paths) for paths in masks.values())
    write_atomic(config.out / "agreement.json", figures.model_dump_json(indent=1).encode())
    print(f"{added} new masks, {written} new labels: {len(masks)} images in {config.out}")
    print(to_text(figures))


def check_source(out: Path, source: str) -> None:
    """Raise `UserError` where labels of another source lie: one store, one source."""
    if not any(out.glob("*.manifest.jsonl")):
        return
    held = {record.source for record in ShardStore(out).records()} - {source}
    if held:
        raise UserError(
            f"{out} holds labels of source {min(held)}, which --source {source} would be mixed "
            "with: give the same --source, or another --out."
        )


def recognised(path: Path) -> str:
    """The tool whose export this is, by its suffix and first character."""
    if (path / "annotators").is_dir() or (path / "masks").is_dir():
        return "png"
    file = exports(path, SUFFIXES)[0]
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{file} is of no known tool ({', '.join(SUFFIXES)}); name it with --tool.")
    with file.open("rb") as stream:
        begins = stream.read(100).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return "label_studio" if begins == b"[" else SUFFIXES[file.suffix.lower()]


class Sizes(Mapping[str, Size]):
    """Heights and widths of a store's images by key, found when they are asked for."""

    def __init__(self, store: ShardStore):
        self.store, self.found = store, dict[str, Size]()
        self.places = {key: i for i, key in enumerate(store.keys)}

    def __getitem__(self, key: str) -> Size:
        if key not in self.found:
            height, width = self.store[self.places[key]].image.shape[:2]
            self.found[key] = (height, width)
        return self.found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def versioned(annotations: Iterator[Annotation], version: str) -> Iterator[Annotation]:
    return (one._replace(tool=f"{one.tool} {version}".strip()) for one in annotations)


def labelled(
    store: ShardStore, masks: dict[str, dict[str, Path]], finished: ShardWriter, source: str
) -> Iterator[Sample]:
    """The annotated samples that are not finished, in the order of the store."""
    for i, key in enumerate(store.keys):
        if key in masks and key not in finished:
            sample = store[i]
            record = sample.record.model_copy(update={"source": source, "teacher": ""})
            label = soft_label(list(read_masks(masks[key]).values()))
            yield replace(sample, mask=label, record=record)


def to_text(figures: Agreement) -> str:
    """The agreement, a line a pair."""
    if figures.iou is None or figures.kappa is None:
        return "No image has masks of two annotators: no agreement to report."
    lines = [
        f"{figures.images_with_several} of {figures.images} images have several masks: "
        f"IoU {figures.iou:.3f}, kappa {figures.kappa:.3f}"
    ]
    lines += [
        f"  {' and '.join(pair.annotators)}: {pair.images} images, IoU {pair.iou:.3f}, "
        f"kappa {pair.kappa:.3f}"
        for pair in figures.pairs
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m data_balancing.annotate_in")
