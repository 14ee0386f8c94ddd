"""What is no data, or cannot be written: one sentence by every command, before anything is made."""

import shutil
from pathlib import Path

import diffusers.pipelines.flux.pipeline_flux  # noqa: F401 - it talks when it is first imported
import pytest

from core import storage
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector
from diffdoctor import cli
from tests.detector.toy import toy_samples, toy_shards

STORES = {
    "data check": "data check {bad}",
    "data check, kept": "data check {bad} --keep {out}",
    "data stats": "data stats {bad}",
    "data preview": "data preview {bad} --out {out}.png",
    "data tag": "data tag {bad} --out {out}.jsonl --from-records",
    "data balance": "data balance {bad} --tags {tags} --detector {detector} --out {out}",
    "data hard-cases": "data hard-cases {bad} --detector {detector} --out {out}",
    "data hard-cases, labelled": (
        "data hard-cases {bare} --detector {detector} --labelled {bad} --out {out}"
    ),
    "data annotate": "data annotate {bad} --out {out} --tool png",
    "data pseudo-label": "data pseudo-label {bad} --detector {detector} --out {out}",
    "detector train": "detector train --data {bad} --out {out}",
    "detector evaluate": "detector evaluate --detector {detector} --data {bad}",
    "detector sanity": "detector sanity --detector {detector} --real {bad} --samples {bare}",
}
"""The place of a store or of a folder in each command's words."""
OTHERS = {
    "data prompts": "data prompts --balance {bad} --templates --out {out}.jsonl",
    "data synthesize": "data synthesize --base {bad} --prompts {prompts} --out {out}",
    "data tag, tagger": "data tag {bare} --out {out}.jsonl --local {bad}",
    "detector train, init": "detector train --data {labelled} --init {bad} --out {out}",
    "data pseudo-label, teacher": "data pseudo-label {bare} --detector {bad} --out {out}",
    "data import": "data import plain {bad} --out {out}",
}
"""What is no store, and no folder of that kind either."""
KINDS = ("empty", "file", "missing", "damaged index", "damaged manifest", "begun")
MAY_BE = {
    ("data hard-cases, labelled", "begun"),
    ("detector sanity", "file"),
    ("data check", "damaged index"),
    ("data check, kept", "damaged index"),
}
"""No label yet, one picture, and what mends the index."""
WRITES = {
    name: STORES[name].replace("{bad}", "{bare}")
    for name in ("data tag", "data balance", "data hard-cases", "data annotate", "data preview")
} | {
    "data check": "data check {bare} --keep {out}",
    "data prompts": "data prompts --categories hand --templates --out {out}.jsonl",
    "data pseudo-label": STORES["data pseudo-label"].replace("{bad}", "{bare}"),
    "detector train": STORES["detector train"].replace("{bad}", "{labelled}"),
    "detector ensemble": "detector ensemble {detector} {detector} --out {out}",
    "figures": "data stats {bare} --json {out}",
}
"""Commands that would run, were there a place for what they write."""


def bare_samples(n: int) -> list[Sample]:
    """Nobody has labelled them."""
    records = [Record(key=f"b-{i}", source="pseudo", category="hand") for i in range(n)]
    images = [sample.image for sample in toy_samples(n, size=64)]
    return [Sample(r.key, image, None, r) for r, image in zip(records, images, strict=True)]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    toy_shards(folder / "labelled", 9, size=64)
    with ShardWriter(folder / "bare") as writer:
        for sample in bare_samples(4):
            writer.write(sample)
    (folder / "empty").mkdir()
    (folder / "file").write_text("no data\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "a hand", "category": "hand"}\n')
    (folder / "tags").write_text('{"key": "b-0", "categories": ["hand"], "model": "m"}\n')
    for kind in ("damaged index", "damaged manifest", "begun"):
        shutil.copytree(folder / "bare", folder / kind)
    index = folder / "damaged index/shard-000000.index.jsonl"
    index.write_bytes(index.read_bytes()[:-40])
    (folder / "damaged manifest/shard.manifest.jsonl").write_text("{no JSON}\n")
    begun = folder / "begun/shard.manifest.jsonl"
    begun.write_text(begun.read_text()[:30])  # as a crash leaves it: nothing was committed
    detector = SegformerDetector(SegformerConfig(variant="nano", prior=0.3))
    save_detector(detector, folder / "detector", {})
    return folder


def said(words: list[str], capsys) -> str:
    """The one line on stderr of a command that is refused."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and text.startswith("error: ") and text.count("\n") == 1, text
    return text


def words_of(line: str, world: Path, out: Path, bad: str = "bare") -> list[str]:
    places = {name: world / name for name in ("bare", "labelled", "detector", "tags")}
    places |= {"bad": world / bad, "out": out, "prompts": world / "prompts.jsonl"}
    return [word.format(**places) for word in line.split()]


PAIRS = [
    (name, kind) for name in [*STORES, *OTHERS] for kind in KINDS if (name, kind) not in MAY_BE
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_what_is_no_data_is_refused_in_one_sentence(name, kind, world, tmp_path, capsys):
    line = {**STORES, **OTHERS}[name]
    text = said(words_of(line, world, tmp_path / "out", kind), capsys)
    assert kind in text or "no tag" in text or "tags no image" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WRITES)
def test_where_nothing_can_be_written_is_said_first(name, world, tmp_path, capsys, monkeypatch):
    """As on a disk that root may not write to, whatever its permissions say."""
    monkeypatch.setattr(storage.tempfile, "TemporaryFile", failing)
    monkeypatch.setattr("detector.train.hold", lambda *_: pytest.fail("images were decoded"))
    text = said(words_of(WRITES[name], world, tmp_path / "out"), capsys)
    assert "cannot be written to" in text and "name another" in text
    assert list(tmp_path.iterdir()) == []


def failing(dir):
    raise PermissionError(13, "Permission denied")


def test_control_the_same_words_pass_where_all_is_well(world, tmp_path):
    for name in ("data tag", "data annotate", "data prompts", "figures"):
        assert cli.main(words_of(WRITES[name], world, tmp_path / name.replace(" ", "-"))) == 0
    assert len(list(tmp_path.iterdir())) > 4
