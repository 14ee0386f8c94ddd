"""The self-refining table: what each row changes, the whole of it in miniature, its figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import self_refining_figures as figures_of
from benchmarks import self_refining_table as table
from benchmarks.self_refining_table import ROWS, Config
from core.errors import UserError
from core.images import write_image
from core.storage import write_atomic
from detector.features import open_features
from tests.tiny.unconditional import tiny_ddpm, tiny_ldm
from treat import figures
from treat.compare import compared


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    tiny_ddpm(sample_size=64).save_pretrained(folder / "ddpm")
    tiny_ldm(vq=False).save_pretrained(folder / "ldm")
    return folder


def config(bases: Path, out: Path, **changes) -> Config:
    few = {"steps": 4, "batch": 2, "map_images": 2, "map_steps": 1, "highlighter": "test_resnet"}
    few |= {"highlighter_steps": 1, "real": 60, "drawn": 60, "images": 4, "sampling_steps": 1}
    given = {"ddpm": str(bases / "ddpm"), "ldm": str(bases / "ldm"), "seeds": (0,), "out": out}
    return Config.model_validate({**given, **few, "features": None, **changes})


def test_each_row_changes_what_its_name_says(bases, tmp_path):
    told = {row: table.settings(config(bases, tmp_path), row, 3) for row in ROWS}
    assert {one.steps for one in told.values()} == {4} and told["ddpm-both"].seed == 3
    both = told["ddpm-both"]
    assert (both.forward_weight, both.reverse_weight) == (0.01, 0.025)
    assert (both.refine_share, both.cycle, both.forward) == (0.5, 100, "paper")
    for row in ("ddpm-base", "ldm-base"):
        assert not told[row].refining and told[row].highlighter is None
    assert (told["ddpm-forward"].reverse_weight, told["ddpm-reverse"].forward_weight) == (0, 0)
    assert told["ddpm-forward"].forward_weight == 0.01
    assert told["ldm-reverse"].reverse_weight == 0.025 and not told["ldm-reverse"].forward_weight
    assert (told["ddpm-1to4"].refine_share, told["ddpm-4to1"].refine_share) == (0.8, 0.2)
    assert (told["ddpm-cycle10"].cycle, told["ddpm-cycle500"].cycle) == (10, 500)
    assert told["ddpm-lambda5"].forward_weight == pytest.approx(0.05)
    assert told["ddpm-lambda0.2"].reverse_weight == pytest.approx(0.005)
    one_factor = both.model_dump(exclude={"out"})
    for row in ("ddpm-1to4", "ddpm-cycle10"):
        other = told[row].model_dump(exclude={"out"})
        assert sum(other[name] != one_factor[name] for name in other) == 1


def test_a_folder_of_other_settings_is_refused_and_one_of_an_earlier_version_taken(bases, tmp_path):
    table.claim(config(bases, tmp_path))
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan.pop("mixed_precision") == "no"  # which came later
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match="other settings \\(mixed_precision\\)"):
        table.claim(config(bases, tmp_path, mixed_precision="bf16"))
    with pytest.raises(UserError, match="other settings \\(steps\\)"):
        table.claim(config(bases, tmp_path, steps=5))
    table.claim(config(bases, tmp_path, seeds=(1,)))


@pytest.mark.slow
def test_a_row_at_a_time_and_a_table_of_what_is_finished(bases, tmp_path):
    out = tmp_path / "table"
    assert table.main(config(bases, out, rows=("ddpm-base",))) is None
    assert table.main(config(bases, out, rows=("ddpm-both", "ldm-reverse"))) is None
    found = json.loads((out / "table.json").read_text())
    assert list(found["rows"]) == ["ddpm-base", "ddpm-both", "ldm-reverse"]
    assert found["rows"]["ddpm-both"]["against"] == "ddpm-base"
    assert "difference" not in found["rows"]["ldm-reverse"]  # its base is not there yet
    said = (out / "table.md").read_text()
    assert figures_of.NO_SETS in said and "LDM, reverse" in said
    kept = {path: path.stat().st_mtime_ns for path in out.glob("images/*/*.png")}
    assert table.main(config(bases, out, rows=("ddpm-both",))) is None
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    with pytest.raises(UserError, match="other settings \\(steps\\)"):
        table.main(config(bases, out, steps=6))


def written(out: Path, row: str, seed: int, flagged) -> None:
    (out / "figures").mkdir(exist_ok=True)
    flags = np.array(flagged)
    columns = {"artifact_frequency": flags, "artifact_area": flags / 4,
               "category": np.array(["hand"] * len(flags))}  # fmt: skip
    write_atomic(out / f"figures/{row}-{seed}.csv", figures.as_csv(columns))


def test_differences_are_paired_over_the_seeds_that_both_have(tmp_path):
    written(tmp_path, "ddpm-base", 0, [True, True, False, False])
    written(tmp_path, "ddpm-base", 1, [True, True, True, True])
    written(tmp_path, "ddpm-both", 0, [True, False, False, False])
    written(tmp_path, "ddpm-both", 2, [False] * 4)  # of a seed without its control
    found = table.finished(tmp_path)
    assert found == {"ddpm-base": [0, 1], "ddpm-both": [0, 2]}
    told = figures_of.summarised(tmp_path, found, None)
    base, both = told["rows"]["ddpm-base"], told["rows"]["ddpm-both"]
    assert (base["artifact_frequency"], both["artifact_frequency"]) == (0.75, 0.125)
    assert both["difference"]["artifact_frequency"]["difference"] == -0.25
    assert both["difference"]["artifact_area"]["difference"] == -0.0625
    assert both["by_seed"][2]["artifact_frequency"] == 0
    said = figures_of.markdown(told, {name: row.title for name, row in ROWS.items()})
    assert "| DDPM, both | 0 2 | 8 | 12.5% [" in said and "-25.00 [" in said
    assert "FID |" not in said and figures_of.NO_SETS in said


def crossed_set(trainings: float, images: float, rest: float, seed: int) -> np.ndarray:
    """Differences of 3 trainings and 200 images, mean 0, with these deviations between trainings,
    between images, and of what is left."""
    draw = np.random.default_rng(seed)
    parts = (trainings, (3, 1)), (images, (1, 200)), (rest, (3, 200))
    return sum(width * draw.standard_normal(shape) for width, shape in parts)


def holds_zero(ends) -> bool:
    return ends[0] <= 0 <= ends[1]


def test_trainings_that_differ_widen_the_interval_where_images_do_not(tmp_path):
    """Three trainings, +2, -1 and +3 points of area each in every image: no sign of a change."""
    draw = np.random.default_rng(0)
    base = draw.uniform(0.2, 0.4, 200)
    for seed, shift in enumerate((0.02, -0.01, 0.03)):
        written_areas(tmp_path, "ddpm-base", seed, base)
        written_areas(tmp_path, "ddpm-both", seed, base + shift)
    told = figures_of.summarised(tmp_path, table.finished(tmp_path), None)
    change = told["rows"]["ddpm-both"]["difference"]["artifact_area"]
    assert change["difference"] == pytest.approx(0.04 / 3) and change["seeds"] == [0, 1, 2]
    half = 4.303 * np.std([0.02, -0.01, 0.03], ddof=1) / 3**0.5  # t of two degrees of freedom
    assert change["interval"] == pytest.approx([0.04 / 3 - half, 0.04 / 3 + half], abs=1e-4)
    assert holds_zero(change["interval"])
    pooled = [  # control: images of all trainings as if they were independent
        figures.joined([figures_of.read_table(tmp_path / f"figures/{row}-{seed}.csv")
                        for seed in range(3)])
        for row in ("ddpm-both", "ddpm-base")
    ]  # fmt: skip
    assert not holds_zero(figures.compare(*pooled)["artifact_area"]["interval"])
    said = figures_of.markdown(told, {name: row.title for name, row in ROWS.items()})
    assert "hold the variance between trainings and that between images" in said


@pytest.mark.parametrize("widths", [(0.05, 0, 0.3), (0, 0.5, 0.3), (0.05, 0.5, 0.3), (0, 0, 0.3)])
def test_the_interval_holds_the_truth_as_often_as_it_says(widths):
    """95 % of 400 made-up tables, or cautiously more (two deviations of 400 are 2 points). The
    pooled interval does so only where neither trainings nor images have a part of their own."""
    sets = [crossed_set(*widths, seed) for seed in range(400)]
    hits = [holds_zero(figures_of.crossed(values)["interval"]) for values in sets]
    assert np.mean(hits) > 0.93
    pooled = [abs(v.mean()) <= 1.96 * v.std(ddof=1) / v.size**0.5 for v in sets]
    assert (np.mean(pooled) < 0.9) == (widths[:2] != (0, 0))


def test_of_one_training_the_images_alone_are_held():
    values = crossed_set(0, 0.5, 0.3, 1)[:1]
    half = 1.972 * values.std(ddof=1) / 200**0.5
    ends = figures_of.crossed(values)["interval"]
    assert ends == pytest.approx([values.mean() - half, values.mean() + half], rel=1e-3)
    assert figures_of.crossed(np.full((3, 4), 0.25))["interval"] == [0.25, 0.25]


def written_areas(out: Path, row: str, seed: int, areas: np.ndarray) -> None:
    (out / "figures").mkdir(exist_ok=True)
    columns = {"artifact_frequency": areas > 0.3, "artifact_area": areas,
               "category": np.array(["hand"] * len(areas))}  # fmt: skip
    write_atomic(out / f"figures/{row}-{seed}.csv", figures.as_csv(columns))


def test_another_number_of_resamples_is_measured_anew(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    for folder in ("reference", "images/ddpm-base-0"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(8):
            image = torch.from_numpy(draw.random((3, 64, 64), np.float32))
            write_image(tmp_path / folder / f"{i}.png", image)
    (tmp_path / "figures").mkdir()
    network, asked = open_features(table.Config.model_fields["features"].default), []

    def counted(real, own, fid, k, number, seed):
        asked.append(number)
        return compared(real, own, fid, k, number, seed)

    monkeypatch.setattr(figures_of, "compared", counted)
    found = [figures_of.set_figures(network, tmp_path, 8, number)("ddpm-base-0")
             for number in (2, 2, 5, 5)]  # fmt: skip
    assert asked == [2, 5] and found[0] == found[1] and found[2] == found[3]
    assert found[0]["interval"]["fid"] != found[2]["interval"]["fid"]


def test_missing_features_are_refused_before_anything_is_drawn(bases, tmp_path):
    with pytest.raises(UserError, match="none does not exist"):
        table.main(config(bases, tmp_path / "out", features=str(tmp_path / "none")))
    assert not (tmp_path / "out").exists()


def test_fid_stands_in_the_table_where_it_is_measured(tmp_path):
    written(tmp_path, "ddpm-base", 0, [True, False])
    written(tmp_path, "ddpm-base", 1, [True, False])
    ends = {"ddpm-base-0": 10.0, "ddpm-base-1": 14.0}

    def sets(name):
        ranges = {"fid": [ends[name] - 1, ends[name] + 1]}
        return {"fid": ends[name], "interval": ranges, "features": {"name": "small"}}

    told = figures_of.summarised(tmp_path, table.finished(tmp_path), sets)
    said = figures_of.markdown(told, {name: row.title for name, row in ROWS.items()})
    assert "| 12 (10 [9, 11]; 14 [13, 15]) |" in said and "FID is that of small" in said
