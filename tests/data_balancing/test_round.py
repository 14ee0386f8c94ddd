"""Whole rounds with a tiny base, a nano detector and a stub of an annotator."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detector.evaluate
import detector.train
from core.errors import UserError
from core.image_files import encode_png
from core.run import PAUSED
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from data_balancing import (
    annotate_in,
    annotate_out,
    balance,
    hard_cases,
    pseudo_label,
    round_stages,
    synthesize,
    tag,
    write_prompts,
)
from data_balancing.round_checks import check, check_held_out, claim
from data_balancing.round_settings import Config
from data_balancing.round_stages import Round
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import digest, load_detector, save_detector
from tests.tiny import SIZE, save_tiny

# As an expression: the module has the name of a built-in function.
turns = importlib.import_module("data_balancing.round")

LABEL = """
import pathlib, sys
from PIL import Image
folder = pathlib.Path(sys.argv[-1])
for path in (folder / "images").glob("*.png"):
    bright = Image.open(path).convert("L").point(lambda v: 255 if v > 127 else 0)
    bright.save(folder / "masks" / path.name)
"""
TRAIN = {"steps": 3, "batch": 4, "learning_rate": 3e-4, "warmup": 0, "ema": 0.0}
STAGES = {
    "tag": tag,
    "balance": balance,
    "prompts": write_prompts,
    "synthesize": synthesize,
    "hard_cases": hard_cases,
    "annotate": annotate_in,
    "pseudo_label": pseudo_label,
    "train": detector.train,
    "score": detector.evaluate,
}


def fill(folder: Path, n: int, first: int, source: str, mask: bool) -> Path:
    with ShardWriter(folder) as writer:
        for i in range(first, first + n):
            image = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
            label = (image.mean(2) > 127).astype(np.uint8) * 255 if mask else None
            category = ("hand", "face")[i % 2]
            record = Record(key=f"s-{i}", source=source, category=category, prompt=f"old {i}")
            writer.write(Sample(record.key, image, label, record))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "base")
    for name, seed in (("detector", 1), ("other", 2)):
        made = SegformerDetector(SegformerConfig(variant="nano", prior=0.3), seed=seed)
        head = made.network.decode_head.classifier.weight
        head.data = torch.randn(head.shape, generator=torch.Generator().manual_seed(seed))
        save_detector(made, folder / name, {})
    fill(folder / "labelled", 8, 0, "human", True)
    fill(folder / "other_labelled", 2, 10, "human", True)
    fill(folder / "held_out", 4, 20, "human", True)
    fill(folder / "pool", 4, 40, "pseudo", False)
    lines = [{"prompt": f"a {c} {i}", "category": c} for i in range(8) for c in ("hand", "face")]
    lines.insert(0, {"prompt": "old 20", "category": "hand"})  # is scored on
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config(world: Path, out: Path, **changes) -> Config:
    given = {
        "out": out,
        "detector": world / "detector",
        "labelled": (world / "labelled",),
        "held_out": world / "held_out",
        "pool": world / "pool",
        "base": str(world / "base"),
        "prompt_list": world / "list.jsonl",
        "from_records": True,
        "annotator": (sys.executable, "-c", LABEL),
        "rounds": 2,
        "synthetic": 4,
        "n_per_prompt": 1,
        "hard": 2,
        "draw": {"height": SIZE, "width": SIZE, "steps": 1, "shard_size": 2},
        "train": TRAIN,
        "device": "cpu",
    }
    return Config.model_validate({**given, **changes})


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "rounds"
    assert turns.main(config(world, out)) is None
    return out


def scores(out: Path) -> list[str]:
    return [(out / f"round-{i}/score.json").read_text() for i in (0, 1, 2)]


def test_two_rounds(world: Path, finished: Path):
    first, second = finished / "round-1", finished / "round-2"
    keys = set((first / "hard/keys.txt").read_text().split())
    people, taught = ShardStore(first / "annotated"), ShardStore(first / "pseudo/synthetic")
    assert len(keys) == 2 and set(people.keys) == keys and not keys & set(taught.keys)
    assert set(ShardStore(first / "synthetic").keys) == keys | set(taught.keys)
    for sample in people:
        bright = np.asarray(Image.fromarray(sample.image).convert("L")) > 127
        assert np.array_equal(sample.mask, bright * 255) and sample.record.source == "hard"
    assert {r.teacher for r in taught.records()} == {digest(world / "detector")}
    assert set(ShardStore(first / "pseudo/pool").keys) == set(ShardStore(world / "pool").keys)
    later = ShardStore(second / "pseudo/synthetic").records()
    assert {r.teacher for r in later} == {digest(first / "training")}
    assert not (second / "pseudo/pool").exists()
    tags = [json.loads(line) for line in (second / "tags.jsonl").read_text().splitlines()]
    assert [line["key"] for line in tags] == ShardStore(first / "synthetic").keys
    card = json.loads((second / "training/detector/detector.json").read_text())["card"]
    assert card["samples"]["number"] == 8 + 4 + 4 + 4 and card["initial"] == "detector"
    assert card["samples"]["sources"] == {"hard": 4, "human": 8, "pseudo": 8}
    said = [r.prompt for f in (first, second) for r in ShardStore(f / "synthetic").records()]
    assert len(set(said)) == 8 and "old 20" not in said


def test_the_best_is_named_and_a_rerun_does_nothing(world: Path, finished: Path, monkeypatch):
    best = json.loads((finished / "best.json").read_text())
    figures = [json.loads(text)["overall"]["all"]["mse"] for text in scores(finished)]
    assert best["mse"] == min(figures) == figures[best["round"]]
    kept = json.loads(scores(finished)[best["round"]])["detector"]
    assert digest(Path(best["detector"])) == digest(finished / "best") == kept
    before = {path: path.stat().st_mtime_ns for path in finished.glob("round-*/**/*")}
    for module in STAGES.values():
        monkeypatch.setattr(module, "main", lambda _: pytest.fail("done again"))
    assert turns.main(config(world, finished)) is None
    assert {path: path.stat().st_mtime_ns for path in finished.glob("round-*/**/*")} == before


def test_stopped_before_and_after_every_stage_the_scores_are_the_same(
    world: Path, finished: Path, tmp_path: Path, monkeypatch
):
    out = tmp_path / "rounds"
    for module in STAGES.values():
        for late in (False, True):
            real = module.main

            def stopping(settings, real=real, late=late):
                if late:
                    real(settings)
                raise KeyboardInterrupt

            monkeypatch.setattr(module, "main", stopping)
            with pytest.raises(KeyboardInterrupt):
                turns.main(config(world, out))
            monkeypatch.setattr(module, "main", real)
    assert turns.main(config(world, out)) is None
    assert scores(out) == scores(finished)
    other = tmp_path / "other"  # the control
    turns.main(config(world, other, rounds=1, seed=1))
    assert (other / "round-1/score.json").read_text() != scores(out)[1]


def test_a_stage_that_pauses_pauses_the_round(world: Path, tmp_path: Path, monkeypatch):
    given = config(world, tmp_path / "rounds", rounds=1)
    monkeypatch.setattr(round_stages, "annotate", lambda *_: False)  # a signal while it paints
    assert turns.main(given) == PAUSED
    monkeypatch.undo()
    monkeypatch.setattr(detector.train, "main", lambda _: PAUSED)
    assert turns.main(given) == PAUSED
    stages = json.loads((tmp_path / "rounds/round-1/stages.json").read_text())
    assert [name for name, one in stages.items() if not one["finished"]] == ["train"]
    monkeypatch.undo()
    assert turns.main(given) is None


def test_where_the_student_gets_worse_the_loop_ends(world: Path, tmp_path: Path, capsys):
    ruin = {"steps": 3, "batch": 4, "learning_rate": 10.0, "warmup": 0, "ema": 0.0}
    learnt = config(world, tmp_path / "rounds", train=ruin, rounds=3)
    assert turns.main(learnt) is None
    best = json.loads((tmp_path / "rounds/best.json").read_text())
    assert best["round"] == 0 and best["stopped"] is True
    assert best["detector"] == str(world / "detector")
    assert digest(tmp_path / "rounds/best") == digest(world / "detector")
    assert "Round 1 errs more than round 0" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "rounds/round-2").exists()
    assert not turns.worse([{"mse": 0.2}, {"mse": 0.2}]) and turns.worse(
        [{"mse": 0.2}, {"mse": 0.3}]
    )
    assert turns.worse([{"mse": 0.2}, {"mse": None}])
    assert turns.kept([{"mse": 0.3}, {"mse": 0.2}]) == 1


def test_people_are_waited_for(world: Path, tmp_path: Path, capsys):
    given = config(world, tmp_path / "rounds", annotator=(), rounds=1, pool=None)
    assert turns.main(given) == PAUSED
    folder = tmp_path / "rounds/round-1/to_annotate"
    assert "2 of 2 images wait for people" in capsys.readouterr().out
    assert len(list((folder / "guesses").iterdir())) == 2  # the teacher's guesses
    names = sorted(path.name for path in (folder / "images").iterdir())
    (folder / "annotators/ann").mkdir(parents=True)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:8] = 255
    (folder / "annotators/ann" / names[0]).write_bytes(encode_png(mask))
    assert turns.main(given) == PAUSED and "1 of 2" in capsys.readouterr().out
    (folder / "masks" / names[1]).write_bytes(encode_png(mask))  # as good a place
    assert turns.main(given) is None
    people = ShardStore(tmp_path / "rounds/round-1/annotated")
    assert len(people) == 2 and all(np.array_equal(sample.mask, mask) for sample in people)


def test_without_a_pool_all_categories_get_as_many(world: Path, tmp_path: Path):
    given = config(world, tmp_path / "rounds", pool=None)
    firsts = [given.model_copy(update={"seed": seed}) for seed in range(8)]
    orders = [Round(one, 1, world / "detector").needed() for one in firsts]
    assert set(orders) == {("hand", "face"), ("face", "hand")}  # nobody is always the first
    assert orders[0] == Round(given, 1, world / "detector").needed()
    second = Round(given, 2, world / "detector")
    (second.folder / "balance").mkdir(parents=True)
    (second.folder / "tags.jsonl").write_text("{}\n")
    odd = second.folder / "balance/balance.json"
    odd.write_text(json.dumps({"anomalous": {"high": ["person"], "low": ["car"]}}))
    assert second.needed() == ("person",)
    odd.write_text(json.dumps({"anomalous": {"high": [], "low": ["car"]}}))
    assert set(second.needed()) == {"hand", "face"}


def test_a_pool_without_tags_gives_no_statistics(world: Path, tmp_path: Path, capsys):
    with ShardWriter(tmp_path / "pool") as writer:
        for sample in ShardStore(world / "pool"):
            record = sample.record.model_copy(update={"category": ""})
            writer.write(Sample(record.key, sample.image, None, record))
    first = Round(config(world, tmp_path, pool=tmp_path / "pool"), 1, world / "detector")
    assert first.run(first.tag) is None and first.run(first.balance) is None
    assert "has a tag: all categories get as many" in capsys.readouterr().out
    assert set(first.needed()) == {"hand", "face"} and not (first.folder / "balance").exists()


def test_real_photographs_need_no_mask(world: Path, tmp_path: Path):
    real = fill(tmp_path / "real", 2, 60, "real", False)
    check(config(world, tmp_path / "rounds", labelled=(world / "labelled", real)))


@pytest.mark.parametrize(
    ("held", "trained", "said"),
    [
        ({"pixels": "a" * 64}, {"pixels": "b" * 64}, None),
        ({"pixels": "a" * 64}, {"pixels": "a" * 64, "key": "y"}, "y is in --held-out"),
        ({"pixels": "a" * 64}, {}, "x is in --held-out"),
        ({}, {"pixels": "a" * 64}, "x is in --held-out"),
        ({}, {"key": "y"}, None),
        (
            {"phash": "f" * 16},
            {"phash": "f" * 15 + "8", "key": "y"},
            "x of --held-out looks like y",
        ),
        ({"phash": "f" * 16}, {"phash": "f" * 15 + "0", "key": "y"}, None),
    ],
)
def test_an_image_is_known_by_its_pixels(tmp_path: Path, held: dict, trained: dict, said):
    level = np.zeros((8, 8), np.uint8)
    for name, given in (("held", held), ("trained", trained)):
        record = Record(**{"key": "x", "source": "human", **given})
        with ShardWriter(tmp_path / name) as writer:
            writer.write(Sample(record.key, np.zeros((8, 8, 3), np.uint8), level, record))
    if said is None:
        return check_held_out(tmp_path / "held", (tmp_path / "trained",))
    with pytest.raises(UserError, match=said):
        check_held_out(tmp_path / "held", (tmp_path / "trained",))


def test_a_changed_held_out_set_is_refused(world: Path, tmp_path: Path):
    store, plain = tmp_path / "store", tmp_path / "plain"
    shutil.copytree(world / "held_out", store)
    for name in ("images", "masks"):
        (plain / name).mkdir(parents=True)
        (plain / name / "a.png").write_bytes(encode_png(np.zeros((8, 8), np.uint8)))
    for held in (store, plain):
        given = config(world, tmp_path / f"{held.name}-rounds", held_out=held)
        claim(given)
        moved = shutil.copytree(held, tmp_path / f"{held.name}-moved")
        claim(given.model_copy(update={"held_out": moved}))
        if held is store:
            fill(store, 5, 20, "human", True)
        else:
            (plain / "masks/a.png").write_bytes(encode_png(np.full((8, 8), 9, np.uint8)))
        with pytest.raises(UserError, match="does not hold the images and masks"):
            claim(given)
        with pytest.raises(UserError, match="held_out, seed differ"):
            claim(given.model_copy(update={"seed": 1}))


def test_no_one_labels_where_nothing_is_hard(world: Path, tmp_path: Path):
    out = tmp_path / "rounds"
    fresh = {"steps": 2, "batch": 4, "init": "random", "quotas": {"human": 0.5, "pseudo": 0.5}}
    turns.main(config(world, out, hard=0, rounds=1, pool=None, annotator=(), train=fresh))
    assert len(ShardStore(out / "round-1/pseudo/synthetic")) == 4
    assert not (out / "round-1/annotated").exists()
    card = json.loads((out / "round-1/training/detector/detector.json").read_text())
    assert card["card"]["initial"] is None and card["card"]["quotas"] == fresh["quotas"]
    assert card["config"]["variant"] == load_detector(world / "detector").config.variant


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detector": "other"}, "detector differ"),
        ({"hard": 3}, "hard differ"),
        ({"train": {"steps": 4}}, "train differ"),
        ({"labelled": ("other_labelled",)}, "labelled differ"),
    ],
)
def test_other_settings_do_not_mix(world: Path, finished: Path, changes: dict, said: str):
    named = {
        name: world / value if name == "detector" else tuple(world / one for one in value)
        for name, value in changes.items()
        if name in ("detector", "labelled")
    }
    with pytest.raises(UserError, match=said):
        turns.main(config(world, finished, **{**changes, **named}))


def test_what_a_killed_write_leaves_is_no_strange_file(tmp_path: Path):
    for name, begin in (
        ("synthetic", lambda out: synthesize.claim(out, {})),
        ("balance", balance._prepare),
        ("to_annotate", lambda out: annotate_out.begin(out, {})),
    ):
        out = tmp_path / name
        out.mkdir()
        (out / ".x.json.123.tmp").write_text("{")
        begin(out)
        other = tmp_path / f"{name}-other"  # the control
        other.mkdir()
        (other / "x.json").write_text("{")
        with pytest.raises(UserError, match="other files"):
            begin(other)


def test_a_key_in_the_clear_is_refused_first(world: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    far = {"endpoint": "http://models.example/v1", "model": "m", "prompt_list": None}
    with pytest.raises(UserError, match="in the clear"):
        turns.main(config(world, tmp_path / "rounds", **far))
    assert not (tmp_path / "rounds").exists()


@pytest.mark.parametrize("text", ['{"tag": {"seco', "[]", '{"tag": 3}', "\udcff"])
def test_a_damaged_note_of_the_stages_is_named(world: Path, tmp_path: Path, text: str):
    turn = Round(config(world, tmp_path), 1, world / "detector")
    turn.folder.mkdir()
    note = turn.folder / "stages.json"
    note.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="remove it and run the same command again"):
        turn.run(turn.tag)
    note.unlink()
    assert turn.run(turn.tag) is None and json.loads(note.read_text())["tag"]["finished"]


def test_bad_input_is_refused_before_anything_is_made(world: Path, tmp_path: Path):
    out = tmp_path / "rounds"
    bad = tmp_path / "list.jsonl"
    bad.write_text('{"prompt": "x", "category": "hads"}\n')
    for changes, said in (
        ({"detector": world / "none"}, "no detector folder"),
        ({"labelled": (world / "base",)}, "is no store"),
        ({"labelled": (world / "held_out",)}, "s-20 is in --held-out"),
        ({"labelled": (world / "labelled", world / "pool")}, "pool has no labelled sample"),
        ({"held_out": world / "pool"}, "has no labelled sample"),
        ({"pool": world / "base"}, "is no store"),
        ({"base": str(world / "none")}, "no base model|model_index"),
        ({"annotator": ("no-such-annotator", "x")}, "no command 'no-such-annotator'"),
        ({"prompt_list": bad}, "did you mean 'hand'"),
        ({"draw": {"height": 33, "width": 32}}, "divide|multiple"),
        (
            {"draw": {"height": SIZE, "width": SIZE, "guidance": 3.5}},
            "base draws without guidance: leave --guidance out",
        ),
        ({"train": {"quotas": {"human": 0.5, "real": 0.5}}}, "quotas name 'real', but the sources"),
        ({"train": {"quotas": {"hard": 1}}, "hard": 0}, "quotas name 'hard', but"),
        (
            {"train": {"quotas": {"pseudo": 1}}, "hard": 4, "pool": None},
            "quotas name 'pseudo', but",
        ),
        ({"train": {"quotas": {"hard": -1}}}, "a share of a source is negative"),
    ):
        with pytest.raises(UserError, match=said):
            turns.main(config(world, out, **changes))
        assert not out.exists()
    for changes, said in (
        ({"from_records": False}, "who tags"),
        ({"prompt_list": None}, "who writes"),
        ({"endpoint": "http://x"}, "go together"),
        ({"endpoint": "http://x", "model": "m"}, "nothing to do"),
        ({"n_per_prompt": 3}, "multiple"),
    ):
        with pytest.raises(ValueError, match=said):
            config(world, out, **changes)
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="other files"):
        turns.main(config(world, out))
