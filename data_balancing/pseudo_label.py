"""Unlabelled samples and a detector in, the same samples with the detector's masks out.

    diffdoctor data pseudo-label store --detector runs/detector --out pseudo --workers 2

One shard in, one shard out, committed whole, so that a second run of the command does only what is
missing. Images are copied as they lie there; masks are 8-bit at the network's own stride (128x128
of 512x512), some 5 KB each. What has a mask, or is a real photograph, is left where it is.
`--cluster ray` shares the shards out over a Ray cluster; the work is the same function.
"""

import json
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from pydantic import Field
from tqdm import tqdm

import core.config
from core.errors import UserError
from core.shards import ShardStore
from core.storage import check_writable, read_json, write_atomic
from data_balancing.annotate_out import read_keys
from data_balancing.teacher import Teacher, label_shard, opened_store
from detector.storage import digest, read_description

NOTE = "teacher.json"


class Config(core.config.Config):
    """Label with a trained detector."""

    data: Annotated[
        tuple[Path, ...], tyro.conf.Positional, core.config.placed("STORE", several=True)
    ] = Field(min_length=1)
    """Stores with samples that have no mask."""
    detector: Path
    """Folder of the teacher, or of the run that trained it."""
    out: Path
    """Folder of the new store."""
    leave_out: Path | None = None
    """A text file of keys that people label, such as keys.txt of `diffdoctor data hard-cases`."""
    batch: int = Field(16, ge=1)
    """Images that the detector sees at once."""
    workers: int = Field(1, ge=1)
    """Processes, each with a detector of its own; on one GPU leave it at 1."""
    cluster: Literal["local", "ray"] = "local"
    """`ray`: the workers are actors of the Ray cluster that RAY_ADDRESS names, or of a local one;
    stores and detector lie where every machine sees them."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of a Ray worker."""
    device: str = "auto"
    """`auto`, or a torch device."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` computes the network in half precision."""


class Job(NamedTuple):
    """One shard to label."""

    store: Path
    shard: str
    out: Path


def main(config: Config) -> None:
    read_description(config.detector)
    check_writable(config.out)
    stores = [path.resolve() for path in config.data]
    if config.out.resolve() in stores:
        raise UserError(f"{config.out} is one of the stores that are labelled: name another --out.")
    opened_store.cache_clear()  # a store may have grown since this process last looked
    opened = [ShardStore(path) for path in stores]
    jobs = [Job(s.folder, shard, config.out.resolve()) for s in opened for shard in s.shards()]
    if not jobs:
        raise UserError(f"{', '.join(map(str, stores))} holds no sample: fill it first.")
    if len({job.shard for job in jobs}) < len(jobs):
        raise UserError("two of the stores have shards of one name: give each an --out of its own.")
    left = frozenset[str]()
    if config.leave_out is not None:
        known = [key for store in opened for key in store.keys]
        left = frozenset(read_keys(config.leave_out, known))
    teacher = Teacher(
        config.detector.resolve(),
        digest(config.detector),
        config.batch,
        config.device,
        config.mixed_precision == "bf16",
        left,
    )
    shards = {name: sha256 for store in opened for name, sha256 in store.digests.items()}
    take(config.out, teacher, shards)
    spread_out = over_ray if config.cluster == "ray" else over_processes
    labelled = earlier = 0
    for new, there in tqdm(spread_out(jobs, teacher, config), "label", len(jobs), unit="shard"):
        labelled, earlier = labelled + new, earlier + there
    print(f"{config.out}: {labelled} labelled, {earlier} were there already.")


def take(out: Path, teacher: Teacher, shards: Mapping[str, str]) -> None:
    """Make the store's folder, or take it up again: one store has one teacher, and no shard of the
    name of another."""
    out.mkdir(parents=True, exist_ok=True)
    note = out / NOTE
    how = {"teacher": teacher.sha256, "bf16": teacher.bf16, "left_out": sorted(teacher.left_out)}
    said = read_json(note) if note.exists() else {}
    if said.get("teacher", teacher.sha256) != teacher.sha256:
        raise UserError(
            f"{out} holds masks of another detector ({said['teacher'][:12]}): name another --out "
            f"for those of {teacher.sha256[:12]}."
        )
    if said and {name: said.get(name) for name in how} != how:
        raise UserError(
            f"{out} was begun with another --leave-out or --mixed-precision: name another --out."
        )
    known = said.get("shards", {})
    other = next((name for name in shards if known.get(name, shards[name]) != shards[name]), None)
    if other is not None:
        raise UserError(
            f"{out} holds masks of another store that has a {other} too: name another --out."
        )
    text = json.dumps({**how, "shards": {**known, **shards}}) + "\n"
    write_atomic(note, text.encode())


def over_processes(jobs: list[Job], teacher: Teacher, config: Config) -> Iterable[tuple[int, int]]:
    """In this process, or in several that are told apart by nothing but their jobs."""
    if config.workers == 1:
        return (label_shard(*job, teacher) for job in jobs)
    return _pooled(jobs, teacher, config.workers)


def _pooled(jobs: list[Job], teacher: Teacher, workers: int) -> Iterator[tuple[int, int]]:
    """Raises `UserError` where a worker cannot begin, or dies; stopped, it waits for no shard."""
    deaf = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    fresh, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, fresh, **deaf) as pool:  # Ctrl-C is for us
        labelled = [pool.submit(label_shard, *job, teacher) for job in jobs]
        try:
            for one in as_completed(labelled):
                yield one.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # a shard is written whole or not at all
            if not isinstance(error, BrokenProcessPool):
                raise
            raise UserError(
                "a worker ended before its shard was done: memory may be short (fewer --workers), "
                'or a Python script called this outside `if __name__ == "__main__":`.'
            ) from error


def over_ray(jobs: list[Job], teacher: Teacher, config: Config) -> Iterator[tuple[int, int]]:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "--cluster ray needs Ray: in the checkout, pip install -e '.[ray]'."
        ) from error

    def label(row: dict[str, Any]) -> dict[str, Any]:
        """A fault travels as a sentence: Ray would try the shard again, and wrap its error."""
        try:
            new, there = label_shard(Path(row["store"]), row["shard"], Path(row["out"]), teacher)
        except UserError as error:
            return {"new": 0, "there": 0, "fault": str(error)}
        return {"new": new, "there": there, "fault": ""}

    ray.init(ignore_reinit_error=True, log_to_driver=False)
    rows = [{"store": str(job.store), "shard": job.shard, "out": str(job.out)} for job in jobs]
    data = ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))
    found = data.map(label, num_cpus=1, num_gpus=config.gpus, concurrency=config.workers)
    for row in found.iter_rows():
        if row["fault"]:
            raise UserError(row["fault"])
        yield row["new"], row["there"]


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m data_balancing.pseudo_label")
