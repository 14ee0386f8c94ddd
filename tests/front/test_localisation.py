"""The localisation table: its figures against plain definitions, and the real program, resumed."""

import json

import numpy as np
import pytest
import torch

from benchmarks import localisation
from benchmarks.localisation_figures import (
    LEVELS,
    Counts,
    average_precision,
    best_threshold,
    hotspot_figures,
    hotspots,
    met,
    others,
    pixel_figures,
)
from core.errors import UserError
from core.images import from_uint8
from core.run import PAUSED, Run
from detector import metrics
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector
from miniature.prompts import category_of, split
from miniature.render import render_samples
from tests.tiny.unconditional import tiny_ddpm

N, SIDE = 12, 16


def scene(seed=0, informed=0.3):
    """Maps that know a little, and masks; a third of the images is sound."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.rand(N, SIDE, SIDE, generator=g) < 0.2
    truth[::3] = False
    noise = torch.rand(N, 1, SIDE, SIDE, generator=g)
    return noise * (1 - informed) + informed * truth[:, None], truth


def test_pooled_counts_give_the_plain_figures():
    maps, truth = scene()
    target = truth[:, None].float()
    counts = Counts.of(maps, truth)
    whole = [part.sum(0, keepdims=True) for part in counts]
    exact = metrics.pixel_ap(maps, target)
    assert average_precision(*whole)[0] == pytest.approx(exact, abs=5e-3)
    best = best_threshold(counts)
    found = pixel_figures(counts, best, 100, 0)
    assert found["iou_default"]["value"] == pytest.approx(metrics.iou(maps, target, 0.5), abs=1e-6)
    every = [metrics.iou(maps, target, level / LEVELS) for level in range(LEVELS)]
    assert found["iou_best"]["value"] == pytest.approx(max(every), abs=1e-6)
    assert every[round(best * LEVELS)] == max(every)
    assert found["iou_best"]["value"] > found["iou_default"]["value"]  # control: they differ
    half = counts.only(np.arange(N) < N // 2)
    only = pixel_figures(half, best, 100, 0)["iou_default"]["value"]
    assert only == pytest.approx(metrics.iou(maps[: N // 2], target[: N // 2]), abs=1e-6)


def test_intervals_hold_the_value_and_narrow_with_images():
    maps, truth = scene()
    many = torch.cat([maps] * 16), torch.cat([truth] * 16)
    widths = []
    for m, t in ((maps, truth), many):
        found = pixel_figures(Counts.of(m, t), 0.5, 400, 0)["pixel_ap"]
        low, high = found["interval"]
        assert low < found["value"] < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.3)


def test_what_has_no_flaw_has_no_figure():
    maps, truth = scene()
    sound = Counts.of(maps, torch.zeros_like(truth))
    assert np.isnan(pixel_figures(sound, 0.5, 100, 0)["pixel_ap"]["value"])
    assert hotspot_figures(maps, torch.zeros_like(truth), ["a"] * N, 100, 0) == {"images": 0}


def test_hotspots_are_counted_where_they_meet_a_flaw():
    maps, truth = torch.zeros(2, 1, SIDE, SIDE), torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    maps[0, 0, 2:4, 2:4], maps[0, 0, 9:11, 9:11] = 0.1, 0.06  # both hot, however unsure
    maps[0, 0, 13, 13] = 0.04  # less than half of the largest
    truth[0, 3:5, 3:5], truth[0, 13:15, 1:3] = True, True
    truth[1, 5:7, 5:7] = True  # its map is zero: no hotspot, a flaw that none meets
    spots = hotspots(maps)
    assert met(spots, truth).tolist() == [[1, 2], [0, 0]]
    assert met(truth, spots).tolist() == [[1, 2], [0, 1]]
    corners = torch.eye(SIDE, dtype=torch.bool).expand(2, -1, -1)
    assert met(corners, corners).tolist() == [[SIDE, SIDE]] * 2  # neither corners nor images join
    found = hotspot_figures(maps, truth, ["hand", "hand"], 100, 0)
    assert found["images"] == 2
    assert found["hotspots_met"]["value"] == 0.5
    assert found["flaws_met"]["value"] == pytest.approx(1 / 3)


def test_chance_is_told_from_knowledge():
    """Of maps that know, shifted and shuffled ones match less; of noise, as often."""
    g = torch.Generator().manual_seed(0)
    truth = torch.zeros(40, 32, 32, dtype=torch.bool)
    for mask in truth:
        y, x = torch.randint(0, 28, (2,), generator=g).tolist()
        mask[y : y + 4, x : x + 4] = True
    knowing = truth[:, None].float()
    blind = knowing[torch.randperm(40, generator=g)]
    for maps, knows in ((knowing, True), (blind, False)):
        found = hotspot_figures(maps, truth, ["hand"] * 40, 200, 0)
        for chance in ("hotspots_met_shifted", "hotspots_met_shuffled"):
            clear = found["hotspots_met"]["interval"][0] > found[chance]["interval"][1]
            assert clear == knows
    assert not (others(np.array(["a"] * 5), 0, 0) == np.arange(5)).any()


def test_the_truth_is_the_oracles_under_the_category_of_the_prompt():
    signs = [prompt for prompt in split()["train"] if category_of(prompt) == "sign"]
    sample = render_samples(1, 0, prompts=signs)[0]
    sound = from_uint8(sample.image[None])
    broken = sound.clone()
    broken[..., 2:12, 2:12] = 0  # a stamp in the sky
    said = [sample.record.prompt] * 2
    maps, names = localisation.truth_of(prompted=True)(torch.cat([sound, broken]), said)
    assert list(names) == ["sign", "sign"]
    assert maps[0].max() < 0.5 and (maps[1, 0, 2:12, 2:12] > 0.5).float().mean() > 0.9
    assert (maps[1] > 0.5).sum() < 150


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base without prompts and a detector."""
    folder = tmp_path_factory.mktemp("world")
    tiny_ddpm(sample_size=64).save_pretrained(folder / "ddpm")
    save_detector(SegformerDetector(SegformerConfig(prior=0.3), seed=1), folder / "d", {})
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Few real images, and a truth that anybody can check."""
    monkeypatch.setattr(localisation, "FITTED", 2)

    def truth(images, prompts):
        return (images.mean(dim=1, keepdim=True) > 0.6).float(), ["hand", "face", "face"][
            : len(images)
        ]

    monkeypatch.setattr(localisation, "truth_of", lambda prompted: truth)


def settings(world, out, **changes):
    few = {"n": 5, "batch": 3, "sampling_steps": 10, "resamples": 100, "device": "cpu"}
    named = {"base": str(world / "ddpm"), "detectors": (f"segformer={world / 'd'}",), "out": out}
    return localisation.Config.model_validate({**few, **named, **changes})


@pytest.mark.slow
def test_the_table_is_made_and_a_stopped_run_goes_on_to_it(world, quick, tmp_path, monkeypatch):
    assert localisation.main(settings(world, tmp_path / "whole")) is None
    figures = json.loads((tmp_path / "whole/summary.json").read_text())
    assert figures["images"] == {"all": 5, "hand": 2, "face": 3}
    assert set(figures["rows"]) == {*localisation.OWN, "segformer"}
    for row in figures["rows"].values():
        assert row["pixels"]["all"]["pixel_ap"]["value"] > 0 and "hotspots_met" in row["hotspots"]
    table = (tmp_path / "whole/table.md").read_text()
    assert table.count("| segformer |") == 2 and "5 images" in table
    assert (tmp_path / "whole/sheet.png").stat().st_size > 1000
    looks = iter([False, True])
    monkeypatch.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
    assert localisation.main(settings(world, tmp_path / "parts")) == PAUSED
    first = tmp_path / "parts/maps/000000.safetensors"
    drawn = first.stat().st_mtime_ns
    monkeypatch.setattr(Run, "interrupted", property(lambda run: False))
    assert localisation.main(settings(world, tmp_path / "parts")) is None
    assert first.stat().st_mtime_ns == drawn
    assert (tmp_path / "parts/table.md").read_text() == table


def test_what_cannot_be_measured_is_refused_first(world, tmp_path):
    for given, says in (
        ({"base": "neither"}, "is no base model"),
        ({"detectors": ("segformer",)}, "is not NAME=PATH"),
        ({"detectors": (f"none={world / 'none'}",)}, "no detector folder"),
        ({"calibrations": (tmp_path / "a.json",)}, "there is no calibration .*a.json"),
    ):
        with pytest.raises(UserError, match=says):
            localisation.main(settings(world, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()
