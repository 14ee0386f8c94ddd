"""The corrector as a job: a trainer runs the real program, pauses it, and goes on."""

import json

import pytest

from core.config import from_mapping
from core.run import PAUSED
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector
from diffdoctor.correction_settings import Config
from launch.folder import Job, Outcome, Program, ask_to_stop
from launch.methods import METHODS
from launch.service.shelf import result_rows
from launch.service.watch import Watch
from tests.launch.test_trainer import train, wait
from tests.tiny import SIZE
from tests.tiny.unconditional import tiny_ddpm

METHOD = METHODS["correct"]
PAIRS = 12


@pytest.fixture
def folder(tmp_path):
    tiny_ddpm(sample_size=SIZE).save_pretrained(tmp_path / "base")
    detector = SegformerDetector(SegformerConfig(variant="nano", prior=0.3), seed=1)
    save_detector(detector, tmp_path / "judge", {})
    (tmp_path / "root/ftjob-1").mkdir(parents=True)
    return tmp_path / "root/ftjob-1"


def prepare(folder, attempt):
    world = folder.parents[1]
    judges = [f"second={world / 'judge'}"]
    told = {"base": str(world / "base"), "out": str(folder), "judges": judges}
    few = {"n": PAIRS, "batch": 1, "sampling_steps": 50, "height": SIZE, "width": SIZE, "shown": 2}
    settings = from_mapping(Config, {**told, **few}).model_dump(mode="json")
    Job(folder.name, attempt, [Program(METHOD.module, list(METHOD.command), settings, {})]).write(
        folder
    )


@pytest.mark.slow
def test_it_is_watched_paused_and_resumed(folder):
    watch = Watch(folder)
    prepare(folder, 1)
    trainer = train(folder)
    wait(lambda: (folder / "metrics.jsonl").exists(), 120)
    ask_to_stop(folder, 1, "pause")
    assert trainer.wait() == PAUSED
    outcome = Outcome.read(folder, 1)
    assert outcome is not None and outcome.stopped and outcome.code == PAUSED
    news = watch.look(None, 0)
    assert news.step is not None and 1 <= news.step < PAIRS  # control: it had not ended
    figures = [note["data"]["step"] for note in news.notes if note.get("type") == "metrics"]
    assert figures == list(range(1, news.step + 1))
    drawn = {path: path.stat().st_mtime_ns for path in folder.glob("images/*/*.png")}
    assert not (folder / METHOD.proof).exists()
    prepare(folder, 2)
    assert train(folder, 2).wait() == 0
    later = watch.look(news.step, news.events_read)
    steps = [note["data"]["step"] for note in later.notes if note.get("type") == "metrics"]
    assert steps == list(range(news.step + 1, PAIRS + 1))  # each told once
    assert len(drawn) >= 2 * news.step  # of both arms
    assert all(path.stat().st_mtime_ns == written for path, written in drawn.items())
    job = {"id": folder.name, "owner": "ada"}
    made = {row["filename"] for row in result_rows(job, folder, METHOD.results, folder.parent)}
    assert {"sheet.png", "report.html", "summary.json", "masks/000000.png"} <= made
    assert json.loads((folder / "summary.json").read_text())["arms"]["base"]["n"] == PAIRS
