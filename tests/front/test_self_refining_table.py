"""The self-refining table: what each row changes, the whole of it in miniature, its figures."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import self_refining_figures as figures_of
from benchmarks import self_refining_table as table
from benchmarks.self_refining_table import ROWS, Config
from core.errors import UserError
from core.storage import write_atomic
from tests.tiny.unconditional import tiny_ddpm, tiny_ldm
from treat import figures


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
    return Config.model_validate({**given, **few, "features": out / "none", **changes})


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
