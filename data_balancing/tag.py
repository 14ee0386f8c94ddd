"""A shard store in, the categories of each image out, as a multimodal model sees them.

    diffdoctor data tag shards --out tags.jsonl --endpoint http://localhost:8000/v1 --model NAME

With `--from-records` no model is asked: the category of each record is its tag.
OUT has a line an image; OUT's stem with `.quarantine.jsonl` those that no answer could be had for,
`.agreement.json` how far a second model agrees, `.cache/` what was answered: running again asks
for what is missing.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import core.config
from core.errors import UserError
from core.explain import unknown_name
from core.samples import Record
from core.shard_writer import ShardWriter
from core.shards import ShardStore, filled
from core.storage import check_file, check_writable, write_atomic
from data_balancing.asking import Endpoint, Model
from data_balancing.local_tagger import LocalModel
from data_balancing.tagging import PROMPT_VERSION, Tagged, Tagger, agreement
from data_balancing.taxonomy import Taxonomy, load_taxonomy

HOPELESS = 20
"""Images set aside from the first on, without one answer, after which the model itself is wrong."""

RECORDS = "records"
"""Who tagged, where no model did."""

Line = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")


class Config(core.config.Config):
    """Settings of one tagging."""

    store: Annotated[Path, tyro.conf.Positional, core.config.placed("STORE")]
    """Folder of shards."""
    out: Path
    """The .jsonl file of tags."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible server, such as http://localhost:8000/v1."""
    model: str | None = None
    """Name of the model there."""
    local: Path | None = None
    """Instead of an endpoint: folder of a transformers image-text-to-text model."""
    from_records: bool = False
    """Instead of a model: the category that each record names."""
    second_model: str | None = None
    """Another model at the endpoint, to see how far the two agree."""
    taxonomy: Path | None = None
    """Categories of your own, as in data_balancing/taxonomy.yaml."""
    concurrency: int = Field(8, ge=1, le=256)
    """Images that are asked about at once; a local model takes one."""
    tagged: Path | None = None
    """Also copy the store there with each image's first category in its record, for what goes by
    records: `hard-cases --labelled`, `detector train --even-categories`. A record that names its
    category keeps it. What was set aside is left out, and comes with a run that gets an answer."""

    @model_validator(mode="after")
    def _one_tagger(self) -> "Config":
        given = (self.endpoint is not None) + (self.local is not None) + self.from_records
        if given != 1:
            raise ValueError("give either --endpoint with --model, or --local, or --from-records.")
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("--endpoint and --model go together.")
        if self.second_model is not None and self.endpoint is None:
            raise ValueError("--second-model needs --endpoint.")
        if self.second_model is not None and self.second_model == self.model:
            raise ValueError("--second-model must be another model than --model.")
        if self.tagged is not None and self.from_records:
            raise ValueError("--tagged writes what a model says into records: leave it out.")
        if self.tagged is not None and self.tagged.resolve() == self.store.resolve():
            raise ValueError("--tagged is the store itself: name another folder.")
        if self.out.suffix != ".jsonl":
            raise ValueError("--out must end in .jsonl.")
        return self


def main(config: Config) -> int | None:
    """Tag every image; exit code 1 when some had to be set aside."""
    check_file(config.out)
    if config.tagged is not None:
        check_writable(config.tagged)
    taxonomy, store = load_taxonomy(config.taxonomy), filled(config.store)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    if config.from_records:
        lines, lost = record_lines(store.records(), taxonomy)
        return finish(config.out, lines, lost)
    models = open_models(config.endpoint, config.local, [config.model, config.second_model])
    cache = config.out.with_suffix(".cache")
    taggers = [Tagger(model, taxonomy, cache) for model in models]
    workers = config.concurrency if config.local is None else 1
    rows = [list(tag_all(store, tagger, workers)) for tagger in taggers]
    if len(rows) == 2:
        figures = compare(taxonomy, taggers, rows)
        text = json.dumps(figures, indent=2) + "\n"
        write_atomic(config.out.with_suffix(".agreement.json"), text.encode())
        Console().print(agreement_table(figures))
    lines, lost = tag_lines(store.keys, taggers, rows)
    if config.tagged is not None:
        write_tagged(store, {line["key"]: line["categories"] for line in lines}, config.tagged)
    return finish(config.out, lines, lost)


def finish(out: Path, lines: Sequence[Line], lost: Sequence[Line]) -> int | None:
    write_lines(out.with_suffix(".quarantine.jsonl"), lost)
    write_lines(out, lines)  # the last: it says that the rest is there
    print(f"{len(lines)} images tagged, {len(lost)} set aside.")
    return 1 if lost else None


def record_lines(records: Iterable[Record], taxonomy: Taxonomy) -> tuple[list[Line], list[Line]]:
    """The category of each record as its tag; set aside is what has none.

    Raises `UserError` for a category that the taxonomy does not know.
    """
    lines: list[Line] = []
    lost: list[Line] = []
    for record in records:
        name = record.category
        if not name:
            lost.append({"key": record.key, "model": RECORDS, "reason": "no category"})
            continue
        if name not in taxonomy.parents:
            where = f"the record of {record.key} (or in the taxonomy: name yours with --taxonomy)"
            raise UserError(unknown_name(name, taxonomy.parents, where))
        said = {"key": record.key, "categories": [name], "model": RECORDS}
        lines.append({**said, "taxonomy": taxonomy.digest, "pixels": record.pixels})
    return lines, lost


def write_tagged(store: ShardStore, tags: Mapping[str, Sequence[str]], out: Path) -> None:
    """The samples that have a category by record or tag, the former first; running again adds."""
    with ShardWriter(out) as writer:
        for i, key in enumerate(tqdm(store.keys, "copy")):
            record = store.record(i)
            category = record.category or next(iter(tags.get(key, ())), "")
            if category and key not in writer:
                named = record.model_copy(update={"category": category})
                said = {"json": named.model_dump_json().encode()}
                writer.write_encoded(key, store.encoded(i) | said)


def open_models(
    endpoint: str | None, local: Path | None, names: Sequence[str | None]
) -> list[Model]:
    if local is not None:
        return [LocalModel(local)]
    return [Endpoint(endpoint or "", name) for name in names if name is not None]


def tag_all(store: ShardStore, tagger: Tagger, workers: int) -> Iterator[Tagged]:
    """Every image in the store's order; `UserError` where the model can answer nothing at all."""
    fresh = 0
    tagged = bounded_map(lambda i: tagger.tag(store[i].image), range(len(store)), workers)
    for i, found in enumerate(tqdm(tagged, tagger.model.name, len(store))):
        fresh += bool(found.reason)
        if fresh == HOPELESS and fresh == i + 1:
            raise UserError(
                f"{tagger.model.name} answered none of the first {HOPELESS} images "
                f"({found.reason}); take a model that sees images and knows JSON schemas."
            )
        yield found


def bounded_map(do: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`do` of every item by so many threads, in order, with few results waiting.

    What is under way at an error or a Ctrl-C is not waited for, as a server may be silent: the
    threads are daemons, which those of `ThreadPoolExecutor` are not (the interpreter joins them).
    """
    waiting: deque[Future[R]] = deque()
    jobs: SimpleQueue[tuple[T, Future[R]] | None] = SimpleQueue()
    ended = Event()

    def work() -> None:
        while (job := jobs.get()) is not None and not ended.is_set():
            try:
                job[1].set_result(do(job[0]))
            except BaseException as error:  # raised again by whoever takes the result
                job[1].set_exception(error)

    for _ in range(workers):
        Thread(target=work, daemon=True).start()
    try:
        for item in items:
            waiting.append(Future())
            jobs.put((item, waiting[-1]))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        ended.set()
        for _ in range(workers):
            jobs.put(None)


def tag_lines(
    keys: Sequence[str], taggers: Sequence[Tagger], rows: Sequence[Sequence[Tagged]]
) -> tuple[list[Line], list[Line]]:
    """What is written: images with the first model's tags, and answers that could not be had."""
    lines, lost = [], []
    for key, *said in zip(keys, *rows, strict=True):
        for tagger, one in zip(taggers, said, strict=True):
            if one.reason:
                lost.append({"key": key, "model": tagger.model.name, "reason": one.reason})
        first, second = said[0], said[1] if len(said) > 1 else None
        if first.reason:
            continue
        line: Line = {
            "key": key,
            "categories": first.categories,
            "model": taggers[0].model.name,
            "taxonomy": taggers[0].taxonomy.digest,
            "question": PROMPT_VERSION,
            "pixels": first.pixels,
        }
        if second is not None and not second.reason:
            line["second"] = second.categories
        lines.append(line)
    return lines, lost


def compare(
    taxonomy: Taxonomy, taggers: Sequence[Tagger], rows: Sequence[Sequence[Tagged]]
) -> dict[str, Any]:
    """How far two models agree, by category, over the images that both have answered."""
    both = [(a, b) for a, b in zip(*rows, strict=True) if not (a.reason or b.reason)]
    first, second = [a.categories for a, _ in both], [b.categories for _, b in both]
    return {
        "models": [tagger.model.name for tagger in taggers],
        "images": len(both),
        "categories": agreement(taxonomy.leaves, first, second),
    }


def agreement_table(figures: dict[str, Any]) -> Table:
    """The categories that either has named, for the terminal."""
    title = f"{' and '.join(figures['models'])} on {figures['images']} images"
    table = Table("category", "kappa", "agree", "first", "second", title=title)
    named = {n: one for n, one in figures["categories"].items() if one["first"] + one["second"]}
    for name, one in named.items():
        shown = ["-" if one[k] is None else f"{one[k]:.2f}" for k in ("kappa", "share")]
        table.add_row(name, *shown, str(one["first"]), str(one["second"]))
    return table


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """One JSON object a line, whole or not at all."""
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor data tag")
