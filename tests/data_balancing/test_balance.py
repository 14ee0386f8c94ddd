"""A store with a category always broken and one that never is: both are found, and shown."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from data_balancing import balance
from data_balancing.categories import by_prompt, in_words
from data_balancing.looks import pixels as pixel_digest
from data_balancing.scores import Scanner, Score, Scored
from data_balancing.taxonomy import load_taxonomy
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector

KINDS = {"hand": (200, 256), "food": (0, 30), "bird": (0, 256), "car": (0, 256)}
"""Brightness of each category; the detector that stands in takes it for breakage."""
N = 40


class Bright:
    """The brighter, the more broken; counts what it has seen."""

    differentiable = False

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return images.mean(1, keepdim=True)

    def to(self, _: torch.device) -> "Bright":
        return self


@pytest.fixture
def world(tmp_path: Path, monkeypatch) -> Path:
    """`store`, `tags.jsonl`, and a detector folder whose detector is `Bright`."""
    draw, tags = np.random.default_rng(0), []
    with ShardWriter(tmp_path / "store") as writer:
        for i in range(N * len(KINDS)):
            name, (low, high) = list(KINDS.items())[i % len(KINDS)]
            image = np.full((32, 32, 3), draw.integers(low, high), np.uint8)
            image[0, 0] = i % 256, i // 256, 0  # no two are equal
            mask = np.zeros((8, 8), np.uint8) if i % 8 < 4 else None
            source = "human" if mask is not None else "pseudo"
            record = Record(key=f"{name}-{i}", source=source, prompt=f"a {name}, {i}")
            writer.write(Sample(record.key, image, mask, record))
            tags.append({"key": record.key, "categories": [name], "pixels": pixel_digest(image),
                         "taxonomy": load_taxonomy().digest})  # fmt: skip
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tags))
    detector = SegformerDetector(SegformerConfig(variant="nano", prior=0.3))
    save_detector(detector, tmp_path / "detector", {})
    monkeypatch.setattr(balance, "load_detector", lambda _: Bright())
    monkeypatch.setattr(balance, "freeze", lambda detector: detector)
    return tmp_path


def config(world: Path, **changes) -> balance.Config:
    settings = {
        "store": world / "store",
        "tags": world / "tags.jsonl",
        "detector": world / "detector",
        "out": world / "report",
        "pictures": 2,
    }
    return balance.Config(**{**settings, **changes})


def test_planted_categories_are_found_and_shown(world: Path):
    balance.main(config(world))
    found = json.loads((world / "report" / "balance.json").read_text())
    assert found["anomalous"] == {"high": ["hand"], "low": ["food"]}
    assert list(found["categories"]) == ["hand", "bird", "car", "food"]  # no person: all are hands
    hand, bird = found["categories"]["hand"], found["categories"]["bird"]
    assert hand["broken"] == hand["n"] == N and hand["rate_shrunk"] < 1
    assert hand["words"] == f"every hand counts as broken ({N} of {N})"
    assert hand["sound"] == hand["false_positives"] == N // 2
    assert bird["anomaly"] is None and bird["p_adjusted"] > 0.05 and not bird["words"]
    assert found["overall"]["n"] == N * len(KINDS)
    page = (world / "report" / "report.html").read_text()
    assert "Every hand counts as broken" in page and "No food counts as broken" in page
    assert page.count("<img") == 2 * 2 * 2 and "http:" not in page and "https:" not in page


def test_a_second_run_sees_no_image_again(world: Path):
    store, bright = ShardStore(world / "store"), Bright()
    memory = world / "scores.jsonl"
    first = list(Scanner(bright, "a", memory, threshold=0.5, size=None).scan(store, 8))
    assert bright.seen == len(store)
    again = list(Scanner(bright, "a", memory, threshold=0.5, size=None).scan(store, 8))
    assert bright.seen == len(store) and again == first
    list(Scanner(bright, "b", memory, threshold=0.5, size=None).scan(store, 8))  # the control
    assert bright.seen == 2 * len(store)


def test_a_score_by_hand(tmp_path: Path):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:8] = 255
    record = Record(key="one", source="real")
    with ShardWriter(tmp_path / "store") as writer:
        writer.write(Sample("one", image, None, record))
    scanner = Scanner(Bright(), "a", tmp_path / "scores.jsonl", threshold=0.5, size=None)
    (one,) = scanner.scan(ShardStore(tmp_path / "store"), 8)
    assert one.sound and (one.score.max, one.score.area) == (1, 0.25)
    assert one.score.mean == pytest.approx(0.25)


def test_the_real_detector(world: Path, monkeypatch):
    monkeypatch.undo()
    balance.main(config(world, size=32))
    assert (world / "report" / "report.html").stat().st_size > 1000


def test_images_of_a_prompt_are_one_witness():
    def scored(key: str, prompt: str, peak: float) -> Scored:
        return Scored(key, prompt, False, Score(pixels=key, max=peak, mean=0, area=0))

    images = [scored("a", "A hand", 0.2), scored("b", "a hand ", 0.6), scored("c", "", 1.0)]
    images.append(scored("d", "", 0.5))
    assert by_prompt(images, [0, 1, 2]) == ([pytest.approx(0.4), 1.0], [0.5])


@pytest.mark.parametrize(
    ("k", "anomaly", "said"),
    [
        (10, "high", "every other animal counts"),
        (9, "high", "nearly every"),
        (5, "high", "more than its share"),
        (5, "low", "less than its share"),
        (1, "low", "hardly any"),
        (0, "low", "no other animal counts"),
        (5, None, ""),
    ],
)
def test_words(k: int, anomaly, said: str):
    assert in_words("other_animal", k, 10, anomaly).startswith(said)


def test_what_does_not_belong_is_refused(world: Path):
    with pytest.raises(UserError, match="no file of tags"):
        balance.main(config(world, tags=world / "none.jsonl"))
    text = (world / "tags.jsonl").read_text()
    for name, old, new, said in (
        ("other", '"key": "', '"key": "x', "tags no image"),
        ("moved", '"pixels": "', '"pixels": "0', "another image"),
        ("foreign", '"taxonomy": "', '"taxonomy": "0', "another taxonomy"),
        ("bare", '"categories"', '"kategories"', "without key"),
    ):
        path = world / f"{name}.jsonl"
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=said):
            balance.main(config(world, tags=path))
    (world / "own").mkdir()
    (world / "own" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="other files"):
        balance.main(config(world, out=world / "own"))
