"""The calibration: what it counts is what it was given, and the tables show the worst."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import calibrate
from miniature.calibrate import (
    Config,
    Reading,
    Task,
    plan,
    run,
    summarise,
    tables,
    tolerant_overlap,
)
from miniature.faults import FAULTS
from miniature.law import CATEGORIES


def test_plan_holds_every_kind_in_every_setting():
    tasks = plan(Config(n=120, faults=60, vae="newest"))
    assert sum(task.images for task in tasks if task.what == "valid") == 120 * 5 * 2 * 2
    assert sum(task.images for task in tasks if task.what == "fault") == 60 * len(FAULTS) * 2
    assert {task.kind for task in tasks} == {*CATEGORIES, *FAULTS}
    assert max(task.images for task in tasks) <= calibrate.CHUNK


def test_a_valid_task_and_a_broken_one():
    sound = run(Task("valid", "scenery", "off the grid", None, 6, 0, 1))
    assert sound.largest.max() < calibrate.BLOB["scenery"] and np.isnan(sound.overlap).all()
    broken = run(Task("fault", "grey-out", "on the grid", None, 6, 0, 1))
    assert (broken.largest >= calibrate.BLOB["bicycle"]).mean() > 0.6
    assert broken.overlap.mean() > 0.5


def test_shares_are_counted_at_every_blob_size():
    found = {
        Task("valid", "hand", "on the grid", None, 2, 0, 0): reading([0, 9]),
        Task("valid", "hand", "on the grid", None, 2, 2, 0): reading([3, 0]),
        Task("fault", "extra finger", "on the grid", None, 2, 0, 0): reading([4, 40], [0.5, 1.0]),
    }
    figures = summarise(found) | {"blob": {"hand": 8}}
    alarms = figures["false_alarms"]["hand"]["on the grid"]
    assert (alarms["3"], alarms["8"], alarms["10"], alarms["n"]) == (0.5, 0.25, 0.0, 4)
    finds = figures["found"]["extra finger"]["planted"]
    assert (finds["4"], finds["5"]) == (1.0, 0.5)
    assert figures["overlap"]["extra finger"]["planted"] == 0.75
    assert [table.row_count for table in tables(figures)][:3] == [1, 1, 1]


def reading(largest: list[float], overlap: list[float] | None = None) -> Reading:
    return Reading(np.array(largest, float), np.array(overlap or [np.nan] * len(largest), float))


def test_overlap_forgives_one_pixel_and_no_more():
    a = torch.zeros(1, 20, 20, dtype=torch.bool)
    a[:, 5:10, 5:10] = True
    assert tolerant_overlap(a, a.roll(1, 2)) == 1 and tolerant_overlap(a, a) == 1
    assert tolerant_overlap(a, a.roll(2, 2)) == pytest.approx(25 / 35)
    assert tolerant_overlap(a, a.roll(8, 2)) == 0
    assert tolerant_overlap(a, torch.zeros_like(a)) == 0


@pytest.mark.slow
def test_program_writes_its_figures(tmp_path: Path, capsys):
    calibrate.main(Config(n=2, faults=2, json_file=tmp_path / "oracle.json", workers=2))
    figures = json.loads((tmp_path / "oracle.json").read_text())
    assert set(figures["found"]) == set(FAULTS) and set(figures["false_alarms"]) == set(CATEGORIES)
    assert figures["settings"]["n"] == 2 and figures["blob"] == calibrate.BLOB
    assert "blob size: hand" in capsys.readouterr().out
