"""Every case of the measurement at full size, on its tiny shapes; what fails stops no other."""

import importlib.util
import json
import math

import pytest
import torch

from base_models.quantise import LIBRARIES
from benchmarks import full_count, full_size, full_step
from benchmarks.full_shapes import FULL, outline
from benchmarks.full_size import Config, main
from benchmarks.full_step import CASES, chosen
from core.errors import UserError

TINY = {"shape": "tiny", "dtype": "float32", "repeats": 1}
PLAIN = [case for case in CASES if not case.compiled]
COMPILED = next(case.name for case in CASES if case.compiled)
COMPARED = next(case.name for case in CASES if case.compared)
SIZES = {"flux": 11.89, "short flux": 2.55, "sdxl": 2.567, "kolors": 2.579}
"""Billions of weights; of the whole ones as the releases have them."""


def run(tmp_path, **changes):
    path = tmp_path / "found.json"
    main(Config(**{**TINY, "json_file": path, **changes}))
    return json.loads(path.read_text())["cases"]


def missing(case):
    library = LIBRARIES.get(case.quantise)
    return library is not None and importlib.util.find_spec(library) is None


@pytest.mark.slow
def test_every_case_is_timed_and_learns(tmp_path):
    found = run(tmp_path)
    assert list(found) == [case.name for case in PLAIN]
    for case in PLAIN:
        row = found[case.name]
        if missing(case):
            assert "pip install" in row["error"]
            continue
        assert "error" not in row, row
        assert math.isfinite(row["median"]) and row["median"] > 0
        assert row["gradient_norm"] > 0
        assert row.get("skipped", 0) == 0


@pytest.mark.slow
def test_compiled_blocks_take_the_same_step(tmp_path):
    # Two runs: in one, the second case would go on from what the first has learnt.
    plain, compiled = (run(tmp_path, only=(name,))[name] for name in ("flux, fast", COMPILED))
    for figure in ("pixel", "gradient_norm"):
        assert compiled[figure] == pytest.approx(plain[figure], rel=1e-5)


@pytest.mark.slow
def test_every_block_is_compiled_and_shares_what_is_made_of_its_kind(tmp_path):
    torch._dynamo.reset()
    frames = torch._dynamo.utils.counters["frames"]
    frames.clear()
    run(tmp_path, only=(COMPILED,))
    assert 4 <= frames["ok"] <= 8  # two kinds of blocks, with and without gradient, and not each


@pytest.mark.slow
def test_bf16_is_near_to_fp32_and_fp32_to_itself(tmp_path):
    same = run(tmp_path, only=(COMPARED,))[COMPARED]
    near = run(tmp_path, only=(COMPARED,), dtype="bfloat16")[COMPARED]
    assert same["cosine"] == pytest.approx(1.0, abs=1e-9)
    assert same["ratio of norms"] == pytest.approx(1.0, abs=1e-9)
    assert 0.98 < near["cosine"] < 1 - 1e-6


def test_a_case_that_fails_is_recorded_and_the_next_begins(tmp_path, monkeypatch):
    first, second = (case.name for case in CASES[:2])
    draw, calls = full_step.draw, []

    def failing(*given):
        calls.append(given)
        if len(calls) == 1:
            raise RuntimeError("no memory")
        return draw(*given)

    monkeypatch.setattr(full_step, "draw", failing)
    found = run(tmp_path, only=(first, second))
    assert found[first]["error"] == "RuntimeError: no memory" and "failing" in found[first]["where"]
    assert found[second]["gradient_norm"] > 0


def test_no_case_begins_when_the_time_is_over(tmp_path):
    found = run(tmp_path, only=(CASES[0].name,), seconds=1e-9)
    assert found == {CASES[0].name: {"left out": "no time left"}}


@pytest.mark.slow
def test_a_count_sees_what_is_saved(tmp_path):
    path = tmp_path / "counted.json"
    names = ("flux, fast", "flux, as flux-48gb", "flux, one graph of four steps")
    full_count.main(full_count.Config(shape="tiny", only=names, json_file=path))
    fast, lean, whole = json.loads(path.read_text()).values()
    assert lean["TFLOP"] > fast["TFLOP"] > 0 and lean["peak"] < fast["peak"]
    assert whole["TFLOP"] > 1.5 * fast["TFLOP"]


@pytest.mark.parametrize("program", [full_size, full_count])
def test_a_case_that_nobody_has_is_refused_before_all_else(program):
    with pytest.raises(UserError, match=r"No case flux, slow: .*; sdxl, fast; "):
        program.main(program.Config(only=("flux, slow",)))


def test_a_compiled_case_is_taken_where_it_is_wanted_or_named():
    assert chosen((), compiled=False) == PLAIN and chosen((), compiled=True) == list(CASES)
    assert [case.name for case in chosen((COMPILED, "flux, fast"), False)] == [
        "flux, fast",
        COMPILED,
    ]


@pytest.mark.parametrize("name", FULL)
def test_the_true_shapes_have_the_true_sizes(name):
    model = outline(FULL[name], torch.bfloat16)
    assert {weight.device.type for weight in model.network.parameters()} == {"meta"}
    numbers = sum(weight.numel() for weight in model.network.parameters())
    assert numbers / 1e9 == pytest.approx(SIZES[name], abs=0.005)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_full_size_needs_a_gpu():
    with pytest.raises(UserError, match="full_count"):
        main(Config())
