"""No file of a stranger's runs anything, whichever of our readers gets it, under whatever name."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from base_models.load import check_base, load_base
from core import checkpoint
from core.config import read_yaml
from core.errors import UserError
from core.image_files import open_image
from core.parquet import ParquetRows
from core.prompts import read_prompts
from core.shards import ShardStore
from data_balancing.formats import FORMATS
from data_balancing.taxonomy import load_taxonomy
from detector import pickled
from detector.convert import read_weights
from detector.storage import load_detector
from launch import archives
from launch.folder import Job, Lease, Outcome
from launch.launchers.contract import environment
from launch.service.shelf import ending
from tests.payloads import RAW, Call, made
from treat.convert import read as read_lora
from treat.offline import read_offline
from treat.verify import examine


def named(name, reader):
    """A reader of one file that is called so."""

    def read(content, folder):
        (folder / name).write_bytes(content)
        return reader(folder / name)

    return read


def within(name, reader, *others):
    """A reader of the folder in which one file is called so."""

    def read(content, folder):
        for one in (name, *others):
            (folder / one).parent.mkdir(parents=True, exist_ok=True)
            (folder / one).write_bytes(content)
        return reader(folder)

    return read


def saved(name, content, folder):
    """A checkpoint whose manifest vouches for what is in it."""
    checkpoint.save(folder, 1, {"model": {"weight": torch.zeros(2)}}, {"step": 1})
    path = folder / "step-00000001"
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    said = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest["files"][name] = said
    (path / "manifest.json").write_bytes(json.dumps(manifest, indent=2).encode())
    return checkpoint.load(folder, 1)


def base_with(name, content, folder):
    """A base whose files are this, beside a module that its index names."""
    (folder / "transformer").mkdir(exist_ok=True)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer/config.json").write_text("{}")
    (folder / name).write_bytes(content)
    check_base(folder)
    return load_base(str(folder))


def every_row(path):
    rows = ParquetRows(path)
    return [rows.texts(["text", "prompt"]), rows.picture(0)]


def each_entry(name, path):
    """All that a reader of published sets makes of it."""
    for entry in FORMATS[name].read(path, path if FORMATS[name].needs_images else None):
        with contextlib.suppress(UserError):
            entry.read()


def unpacked(path):
    into = path.parent / "out"
    archives.unpack(path, into, 1 << 20)
    assert not any(one.stat().st_mode & 0o111 for one in into.rglob("*") if one.is_file())


READERS = {
    "settings": named("a.yaml", read_yaml),
    "taxonomy": named("a.yaml", load_taxonomy),
    "prompts.txt": named("a.txt", read_prompts),
    "prompts.jsonl": named("a.jsonl", read_prompts),
    "prompts.csv": named("a.csv", read_prompts),
    "prompts.parquet": named("a.parquet", read_prompts),
    "parquet": named("a.parquet", every_row),
    "image": named("a.png", open_image),
    "image that is said to be none": named("a.npy", open_image),
    "shards": within("a.manifest.jsonl", ShardStore, "a.tar", "a.index.jsonl"),
    "real images": within("metadata.jsonl", read_offline, "a.png", "a.txt"),
    "checkpoint, state": partial(saved, "state.json"),
    "checkpoint, weights": partial(saved, "model.safetensors"),
    "checkpoint, another file": partial(saved, "optimizer.safetensors"),
    "detector": within("detector.json", load_detector, "detector.safetensors"),
    "weights": named("a.safetensors", read_weights),
    "LoRA": named("a.safetensors", read_lora),
    "LoRA, examined": named("a.safetensors", examine),
    "base, index": partial(base_with, "model_index.json"),
    "base, config": partial(base_with, "transformer/config.json"),
    "base, weights": partial(base_with, "transformer/diffusion_pytorch_model.safetensors"),
    "base, pickled weights": partial(base_with, "transformer/diffusion_pytorch_model.bin"),
    "base, single file": named("a.safetensors", lambda path: load_base(str(path))),
    "base, pickled file": named("a.ckpt", lambda path: load_base(str(path))),
    "data, coco": within("annotations.json", partial(each_entry, "coco"), "instances.json"),
    "data, plain": within("images/a.png", partial(each_entry, "plain"), "masks/a.png"),
    "data, richhf": named("a.tfrecord", partial(each_entry, "richhf")),
    "archive": named("a.zip", unpacked),
    "job": within("job.json", Job.read),
    "lease": within("lease.json", Lease.read),
    "outcome": within("outcome.json", lambda folder: Outcome.read(folder, 1)),
}  # fmt: skip
"""Every reader of a file that is not ours, but for .bin (below): bytes and an empty folder in."""
QUIET = {"prompts.txt", "lease", "outcome", "LoRA, examined", "data, plain"}
"""To whom they are text, nothing, or a finding."""
TYPED = (UserError, checkpoint.DamagedCheckpoint)
NAMES = [*made(Path("/nowhere"))]


@pytest.fixture
def world(tmp_path):
    """The payloads, the sentinel that they would make, and an empty folder each time."""
    sentinel, count = tmp_path / "sentinel", iter(range(10_000))

    def fresh():
        folder = tmp_path / str(next(count))
        folder.mkdir()
        return folder

    return made(sentinel), sentinel, fresh


def test_control_each_runs_in_the_reader_that_it_is_meant_for(world):
    payloads, sentinel, fresh = world
    assert len(payloads) >= 60
    for name, one in payloads.items():
        assert not sentinel.exists()
        with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
            RAW[one.raw](one.content, fresh())
        assert sentinel.exists() or sentinel.is_symlink(), name
        shutil.rmtree(sentinel) if sentinel.is_dir() else sentinel.unlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_of_ours_runs_it(world, reader):
    payloads, sentinel, fresh = world
    refused = 0
    for name, one in payloads.items():
        folder = fresh()
        try:
            READERS[reader](one.content, folder)
        except TYPED:
            refused += 1
        assert not sentinel.exists() and not sentinel.is_symlink(), name
        shutil.rmtree(folder)
    assert refused or reader in QUIET


# Pickled weights: the one reader that opens a pickle at all


def opened_in_a_fork(path, target):
    """`detector.pickled.main` in a process of its own, which has torch loaded already."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = pickled.main(path, target)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("ending", [".bin", ".pth"])
def test_pickled_weights_are_refused_where_they_hold_more(world, ending):
    payloads, sentinel, fresh = world
    for name, one in payloads.items():
        path = fresh() / f"a{ending}"
        path.write_bytes(one.content)
        assert opened_in_a_fork(path, path.with_name("out")) == pickled.REFUSED, name
        assert not sentinel.exists() and not path.with_name("out").exists(), name
    good = fresh() / f"a{ending}"  # control
    torch.save({"weight": torch.zeros(2)}, good)
    assert opened_in_a_fork(good, good.with_name("out")) == 0


@pytest.mark.parametrize("number", [1, pytest.param(1000, marks=pytest.mark.trial)])
def test_the_whole_reader_of_pickled_weights_says_so(world, number):
    payloads, sentinel, fresh = world
    for name in random.sample(NAMES, min(number, len(NAMES))):
        path = fresh() / "a.bin"
        path.write_bytes(payloads[name].content)
        with pytest.raises(UserError, match="holds more than tensors|holds no weights"):
            read_weights(path)
        assert not sentinel.exists(), name


def test_the_fence_holds_where_torch_would_not(world, monkeypatch):
    """Were torch's own reader to let something through, it could start no program."""
    payloads, sentinel, fresh = world
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: load(*a, **{**k, "weights_only": False}))
    path = fresh() / "a.bin"
    path.write_bytes(payloads["torch"].content)
    assert opened_in_a_fork(path, path.with_name("out")) == pickled.REFUSED
    assert not sentinel.exists()
    with monkeypatch.context() as patch:  # control
        patch.setattr(pickled, "FENCED", ("nothing",))
        opened_in_a_fork(path, path.with_name("out"))
    assert sentinel.exists()


# What lies about where a program runs


@pytest.mark.parametrize("name", ["yaml", "core", "launch", "json", "torch"])
def test_no_module_of_a_run_folder_is_imported(tmp_path, name):
    sentinel, folder = tmp_path / "sentinel", tmp_path / "ftjob-1"
    folder.mkdir()
    (folder / f"{name}.py").write_text(f"open({str(sentinel)!r}, 'w').close()\n")
    (folder / "usercustomize.py").write_text(f"open({str(sentinel)!r}, 'w').close()\n")
    words = ["-m", "launch.trainer", str(folder), "1"]
    run = partial(subprocess.run, cwd=folder, env=environment(), capture_output=True, text=True)
    done = run([sys.executable, "-P", *words])
    assert not sentinel.exists() and "holds no job.json" in done.stderr
    if name != "torch":  # which the trainer does not need
        run([sys.executable, *words])
        assert sentinel.exists()  # control


RUN = "pkl pickle bin pt pth ckpt pt2 npy npz joblib h5 onnx py pyc so sh html svg xml ipynb tar gz"


@pytest.mark.parametrize("kind", RUN.split())
def test_files_that_run_code_are_not_even_taken(kind):
    with pytest.raises(UserError, match="of no use here"):
        ending(f"a.{kind}")


def test_a_column_of_a_parquet_file_is_not_unpickled(world):
    """What pyarrow did before 14.0.1 with a type of Python's."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    _, sentinel, fresh = world
    hostile = pickle.dumps(Call(os.system, f"touch {sentinel}"))
    said = {"ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": hostile}  # fmt: skip
    field = pyarrow.field("text", pyarrow.string(), metadata=said)
    table = pyarrow.table([["a hand"]], schema=pyarrow.schema([field]))
    path = fresh() / "a.parquet"
    parquet.write_table(table, path)
    assert ParquetRows(path).texts(["text"]) == ["a hand"]
    assert not sentinel.exists()
    pickle.loads(hostile)  # noqa: S301  # control
    assert sentinel.exists()
