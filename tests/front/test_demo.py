"""The chain from end to end on a random base, small enough for a test; resume; refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import treat.evaluate
from core.errors import UserError
from core.prompts import read_prompts
from detector.data import open_labelled
from detector.storage import read_description
from diffdoctor import demo, demo_data, evaluation
from diffdoctor.demo_settings import OF_BASE, QUICK, quick
from miniature.bases import DETECTORS
from miniature.law import CATEGORIES
from miniature.prompts import category_of, split
from tests.tiny import save_tiny

MICRO = replace(
    QUICK,
    sampling_steps=1,
    labelled=10,
    second_labelled=10,
    redrawn=10,
    renders=40,
    real=40,
    tested=10,
    evaluated=5,
    detector={"steps": 2, "batch": 4, "valid_every": 2, "warmup": 1, "checkpoint_every": 2},
    treat={**QUICK.treat, "steps": 2, "batch": 2, "watch_every": 1, "watch_images": 2,
           "picture_every": 0, "rank": 2, "last": 1},
    refresh={**QUICK.refresh, "refresh_every": 1, "refresh_images": 2, "refresh_steps": 1},
)  # fmt: skip


@pytest.fixture
def micro(monkeypatch, tmp_path):
    base = save_tiny(tmp_path / "base")
    for grade in (MICRO.base, *MICRO.older):
        (tmp_path / grade).symlink_to(base)
    monkeypatch.setattr(demo, "base_folder", lambda grade: tmp_path / grade)
    monkeypatch.setattr(demo, "quick", lambda settings: MICRO)
    return demo.Config(out=tmp_path / "demo", quick=True)


@pytest.fixture
def starts(monkeypatch):
    """The steps at which batches of two enter the sampling."""
    found = []

    def redraw(model, images, prompts, seeds, *, steps, start):
        found.append(start)
        return images

    monkeypatch.setattr(demo_data, "redraw", redraw)
    monkeypatch.setattr(demo_data, "BATCH", 2)
    return found


def test_batches_are_redrawn_from_every_step_in_turn_and_once(micro, starts, tmp_path):
    base, said = str(demo.base_folder("newest")), split()["train"]
    for _ in range(2):
        demo_data.write_redrawn(tmp_path / "store", base, said, n=9, steps=6, seed=1)
    assert starts == [1, 2, 3, 1, 2]
    samples, records = open_labelled((tmp_path / "store",))
    assert len(samples) == 9 and all(record.referenced for record in records)
    for sample in samples:
        assert np.array_equal(sample.image, sample.reference)


@pytest.mark.slow
def test_chain(micro):
    assert demo.main(micro) is None
    summary = json.loads((micro.out / "summary.json").read_text())
    for arm in ("base", "control", "adapter"):
        assert set(summary[arm]) == set(demo.FIGURES) and summary[arm]["n"] == 5
    assert set(summary["detector"]) == {"pixel_ap", "iou", "false_positive_images"}
    assert summary["seconds"] > 0
    for name in ("adapter_file", "report"):
        assert Path(summary[name]).is_file()
    before = {path: path.stat().st_mtime_ns for path in micro.out.rglob("*.safetensors")}
    assert demo.main(micro) is None  # nothing runs again
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_folder_is_not_touched(micro):
    micro.out.mkdir()
    (micro.out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no demo"):
        demo.main(micro)
    assert [path.name for path in micro.out.iterdir()] == ["thesis.txt"]


def test_other_numbers_are_refused(micro):
    demo.Demo(micro.out, MICRO).claim()
    demo.Demo(micro.out, MICRO).claim()
    with pytest.raises(UserError, match="other numbers"):
        demo.Demo(micro.out, replace(MICRO, seed=1)).claim()


def test_an_interrupted_stage_is_not_finished(micro):
    walk = demo.Demo(micro.out, MICRO)
    walk.claim()
    codes = iter([75, None])
    calls = []

    def stage():
        calls.append(1)
        return next(codes)

    assert walk.run(stage) == 75
    assert walk.run(stage) is None and walk.run(stage) is None
    assert len(calls) == 2  # once interrupted, once to its end, never again


def test_no_prompt_on_both_sides_and_every_stretch_balanced(tmp_path):
    lists = {}
    for part in ("train", "held_out"):
        path = tmp_path / "prompts" / f"{part}.txt"
        demo_data.write_prompts(path, part, seed=0)
        lists[part] = read_prompts(path)
        shown = [category_of(prompt) for prompt in lists[part][-2 * len(CATEGORIES) :]]
        assert set(shown) == set(CATEGORIES)
    assert not set(lists["train"]) & set(lists["held_out"])


def test_a_file_or_a_damaged_note_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file: name a folder"):
        demo.Demo(tmp_path / "file", MICRO).claim()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/demo.json").write_text("{")
    with pytest.raises(UserError, match="is damaged: give another --out"):
        demo.Demo(tmp_path / "out", MICRO).claim()


def test_what_an_evaluation_cannot_judge_or_draw_is_refused_before_it_draws(tmp_path):
    (tmp_path / "prompts.txt").write_text("a castle\na moat\n")
    given = {"base": "no/such/base", "prompts": tmp_path / "prompts.txt", "out": tmp_path / "out"}
    with pytest.raises(UserError, match="the oracle does not know the prompt 'a castle'"):
        evaluation.main(evaluation.Config(**given, adapters=("a=b",), judge="oracle"))
    base = save_tiny(tmp_path / "base")
    with pytest.raises(UserError, match="63"):
        treat.evaluate.main(
            treat.evaluate.Config(**given | {"base": str(base)}, adapters=("a=b",), height=63)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", OF_BASE)
@pytest.mark.parametrize("kind", [lambda settings: settings, quick])
def test_every_base_has_settings_that_its_programs_take(tmp_path: Path, name: str, kind):
    settings = kind(OF_BASE[name])
    assert settings.base == name
    assert all(read_description(DETECTORS / start) for start in settings.starts)
    chain = demo.Demo(tmp_path, settings)
    adapter = chain.treatment("adapter", **chain.rewarded())
    assert adapter.sampling_steps == settings.sampling_steps and adapter.base == chain.base
    assert chain.treatment("control", **demo.CONTROL).pixel_weight == 0


def test_a_demo_of_another_base_is_named_and_kept(tmp_path: Path):
    demo.Demo(tmp_path, OF_BASE["sdxl"]).claim()
    kept = (tmp_path / "demo.json").read_bytes()
    with pytest.raises(UserError, match="add --base sdxl, or give another --out"):
        demo.Demo(tmp_path, OF_BASE["newest"]).claim()
    assert (tmp_path / "demo.json").read_bytes() == kept


def test_few_batches_are_redrawn_from_all_over_the_first_half(micro, starts, tmp_path):
    base, said = str(demo.base_folder("newest")), split()["train"]
    demo_data.write_redrawn(tmp_path / "store", base, said, n=6, steps=20, seed=1)
    assert starts == [1, 4, 7]
