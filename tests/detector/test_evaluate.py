"""Evaluate and diagnose as programs: tables, JSON, maps; a bad image is listed, not fatal."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.images import read_image
from detector import diagnose, evaluate
from detector.measure import by_group, predict
from detector.metrics import all_metrics
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector
from tests.detector.toy import toy_folder, toy_samples, toy_shards


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(SegformerDetector(SegformerConfig()), tmp_path_factory.mktemp("d"), {})


def test_figures_reach_the_table_and_the_json(detector, tmp_path, capsys):
    shards = toy_shards(tmp_path / "s", 8)
    config = evaluate.Config(detector=detector, data=(shards,), json_file=tmp_path / "f.json")
    evaluate.main(config)
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "f.json").read_text())
    assert "pixel AP" in printed and "category bar" in printed and "source real" in printed
    assert figures["overall"]["all"]["images"] == 8 and len(figures["detector"]) == 64
    assert figures["source"]["real"]["pixel_ap"] is None  # no artifact there: not defined
    assert set(figures["category"]) == {"bar", "disc"}
    assert sum(one["pixels"] for one in figures["reliability"]) == 8 * 32 * 32


def test_json_is_an_option_of_the_command_line(detector, tmp_path):
    from core.config import load_config

    words = ["--detector", str(detector), "--data", "a", "b", "--json"]
    assert load_config(evaluate.Config, (), [*words, "f.json"]).json_file is not None
    with pytest.raises(UserError, match="no folder .*nowhere; create it"):
        load_config(evaluate.Config, (), [*words, str(tmp_path / "nowhere/f.json")])
    with pytest.raises(UserError, match="is a folder"):
        load_config(evaluate.Config, (), [*words, str(tmp_path)])


def test_groups_are_the_figures_of_their_rows():
    records = [sample.record for sample in toy_samples(6)]
    maps, target = torch.rand(6, 1, 4, 4), torch.rand(6, 1, 4, 4)
    figures = by_group(maps, target, records, 0.5)
    rows = [i for i, record in enumerate(records) if record.category == "bar"]
    assert figures["category"]["bar"]["mse"] == all_metrics(maps[rows], target[rows])["mse"]


def test_the_measured_figures_do_not_depend_on_the_batch():
    model = SegformerDetector(SegformerConfig()).eval()
    images = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(predict(model, images, 2), predict(model, images, 5))


def run_diagnose(detector, images, out, **changes):
    return diagnose.main(diagnose.Config(images=images, detector=detector, out=out, **changes))


def table(out):
    with (out / "table.csv").open() as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def test_a_folder_with_a_bad_image(detector, tmp_path):
    folder = toy_folder(tmp_path / "f", 4) / "images"
    (folder / "broken.png").write_bytes(b"no image")
    assert run_diagnose(detector, folder, tmp_path / "out") is None
    rows = table(tmp_path / "out")
    assert (
        rows["broken.png"]["verdict"] == "unreadable" and "convert it" in rows["broken.png"]["note"]
    )
    good = rows["toy-0001.png"]
    assert good["verdict"] == "sound" and float(good["max"]) < 0.5 and float(good["area"]) == 0
    for name in ("maps", "overlays"):
        assert read_image(tmp_path / "out" / name / "toy-0001.png").shape == (3, 32, 32)
        assert not (tmp_path / "out" / name / "broken.png").exists()
    assert read_image(tmp_path / "out" / "sheet.png").shape[0] == 3


def test_one_image_of_any_size_and_the_threshold(detector, tmp_path):
    Image.fromarray(np.full((50, 70, 3), 90, np.uint8)).save(tmp_path / "photo.jpg")
    run_diagnose(detector, tmp_path / "photo.jpg", tmp_path / "out", threshold=0.001)
    row = table(tmp_path / "out")["photo.jpg"]
    assert row["verdict"] == "artifact" and float(row["area"]) == 1
    assert read_image(tmp_path / "out" / "maps" / "photo.png").shape == (3, 50, 70)


def test_no_readable_image_is_a_failure(detector, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    figures = tmp_path / "figures.json"
    assert run_diagnose(detector, tmp_path / "bad.png", tmp_path / "out", json_file=figures) == 1
    found = json.loads(figures.read_text())
    assert (found["images"], found["unreadable"], found["share"]) == (1, 1, None)


def test_the_figures_of_all_together_are_those_of_the_table(detector, tmp_path, capsys):
    folder, out = toy_folder(tmp_path / "f", 4) / "images", tmp_path / "out"
    (folder / "broken.png").write_bytes(b"no image")
    peaks = sorted(float(row["max"]) for row in table_of(detector, folder, out) if row["max"])
    figures, highest = tmp_path / "figures.json", sum(peaks[-2:]) / 2
    again = table_of(detector, folder, tmp_path / "again", threshold=highest, json_file=figures)
    read, found = [row for row in again if row["max"]], json.loads(figures.read_text())
    assert len(read) == len(peaks) == 3 and peaks[-1] > peaks[-2]
    assert (found["images"], found["unreadable"], found["with_artifacts"]) == (4, 1, 1)
    assert found["share"] == pytest.approx(1 / 3)
    for name in ("mean", "area"):
        own = sum(float(row[name]) for row in read) / 3
        assert found[name] == pytest.approx(own, abs=1e-6) and found[name] > 0
    assert "1 with artifacts (33%" in " ".join(capsys.readouterr().out.split())


def table_of(detector, folder, out, **changes):
    run_diagnose(detector, folder, out, **changes)
    return list(table(out).values())


def test_names_that_collide_and_wrong_places_are_refused(detector, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="'a'"):
        run_diagnose(detector, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        run_diagnose(detector, tmp_path / "none", tmp_path / "out")
    (tmp_path / "x" / "maps").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "x" / "maps" / "a.png")
    with pytest.raises(UserError, match="another folder"):
        run_diagnose(detector, tmp_path / "x" / "maps", tmp_path / "x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("")
    with pytest.raises(UserError, match=r"holds other files \('config.yaml'\)"):
        run_diagnose(detector, tmp_path / "x" / "maps", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    Image.new("RGB", (32, 32)).save(tmp_path / "x" / "sheet.png")
    with pytest.raises(UserError, match="holds the images themselves"):
        run_diagnose(detector, tmp_path / "x" / "sheet.png", tmp_path / "x")


def test_names_with_dots_and_hidden_files_are_no_trouble(detector, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.b.png", "a.png.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.DS_Store").write_text("")
    assert run_diagnose(detector, tmp_path / "in", tmp_path / "out") is None
    made = {path.name for path in (tmp_path / "out/maps").iterdir()}
    assert made == {"a.png", "a.b.png", "a.png.png"}
    assert (tmp_path / "out/.DS_Store").exists()
