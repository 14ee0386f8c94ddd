"""One wrong record is refused and the others are read; shapes against an independent rasteriser."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from pycocotools import mask as coco_tool

from core.errors import UserError
from data_balancing.formats import FORMATS, files, imdl
from data_balancing.formats.shapes import boxes, polygons, run_lengths
from tests.data_balancing.sets import SETS, H, W, encoded, filled, packed, picture, put

FLAT = [2, 1, 5, 1, 5, 4, 2, 4]
BAD_FLAT = {
    "two points": [1, 1, 2, 2],
    "an x without a y": [1, 1, 2, 2, 3, 3, 4],
    "NaN": [1, 1, float("nan"), 2, 3, 3],
    "infinite": [1, 1, float("inf"), 2, 3, 3],
    "huge": [1, 1, 1e300, 2, 3, 3],
    "a number of 400 digits": [1, 1, 10**400, 2, 3, 3],
    "far": [1, 1, 10_000, 2, 3, 3],
    "outside": [-9, -9, -5, -9, -5, -5],
    "a text": [1, 1, "2", 2, 3, 3],
    "nothing": [],
    "no list": 3,
}


def outcome(name: str, root, images=None) -> dict[str, str]:
    """'' for what is used, else why it is refused."""
    found = {}
    for entry in FORMATS[name].read(root, images):
        try:
            entry.read()
            found[entry.name] = ""
        except UserError as error:
            found[entry.name] = str(error)
    return found


@pytest.mark.parametrize("kind", BAD_FLAT)
def test_a_bad_polygon_costs_its_own_image_only(kind, tmp_path):
    flat = BAD_FLAT[kind]
    root, _ = SETS["synthscars"](tmp_path / "s")
    path = root / "train/annotations/train.json"
    records = json.loads(path.read_bytes())
    records[0]["7"]["refs"][0]["segmentation"] = [FLAT, flat]
    put(path, records)
    found = outcome("synthscars", root)
    assert found.pop("train/7") and not any(found.values()) and len(found) == 3

    root, _ = SETS["coco"](tmp_path / "c")
    path = root / "annotations/instances.json"
    whole = json.loads(path.read_bytes())
    whole["annotations"][1]["segmentation"] = [flat]
    put(path, whole)
    found = outcome("coco", root)
    assert found.pop("a.png") and not any(found.values()) and len(found) == 3


@pytest.mark.parametrize("kind", ["two points", "NaN", "infinite", "huge", "outside", "triple"])
def test_a_bad_polygon_in_parquet(kind, tmp_path):
    flat = BAD_FLAT.get(kind, [0, 0, 1, 1, 2, 2])
    points = [[float(x), float(y)] for x, y in zip(flat[::2], flat[1::2], strict=True)]
    points = [[*point, 1.0] for point in points] if kind == "triple" else points
    rows = [
        {"image": encoded(picture(n)), "generator": None, "labels": [{"label": "a", "points": p}]}
        for n, p in enumerate([points, [[2.0, 1.0], [5.0, 1.0], [5.0, 4.0], [2.0, 4.0]]])
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    found = outcome("xaigd", tmp_path / "x.parquet")
    assert found["x:0"] and not found["x:1"]


def test_a_row_without_regions_and_a_damaged_file_beside_it(tmp_path):
    rows = [{"image": encoded(picture(0)), "labels": None}, {"image": None, "labels": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    put(tmp_path / "b.parquet", b"PAR1")
    put(tmp_path / "c.parquet", (tmp_path / "a.parquet").read_bytes())
    table = pyarrow.Table.from_pylist([{"image": b"", "text": "no labels"}])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    found = outcome("xaigd", tmp_path)
    assert [key for key, reason in found.items() if not reason] == ["a.parquet:0", "c.parquet:0"]
    assert "image" in found["a.parquet:1"] and "damaged" in found["b.parquet"]
    assert "no column 'labels'" in found["d.parquet"]


def test_parquet_holds_one_row_group_at_a_time(tmp_path, monkeypatch):
    from data_balancing.formats import xaigd

    asked = []
    plain_column = xaigd.column
    monkeypatch.setattr(
        xaigd, "column", lambda *args: (asked.append(args[2:]), plain_column(*args))[1]
    )
    outcome("xaigd", SETS["xaigd"](tmp_path)[0])
    names = ("image", "labels", "generator")
    assert asked == [(name, group) for group in (0, 1) for name in names]


WHOLE = {"img_file_name": "0.jpg", "caption": "a", "refs": []}
SCARS = [
    None,
    [],
    {},
    "text",
    {"7": []},
    {"7": {**WHOLE, "img_file_name": 1}},
    {"7": {**WHOLE, "caption": "half a \ud800 pair"}},
    {"7": {**WHOLE, "refs": [{"segmentation": []}]}},
    {"7": {**WHOLE, "refs": None}},
]


@pytest.mark.parametrize("record", SCARS)
def test_a_scar_of_another_structure(record, tmp_path):
    root, _ = SETS["synthscars"](tmp_path)
    path = root / "train/annotations/train.json"
    records = json.loads(path.read_bytes())
    put(path, [record, records[1], records[1]])
    found = outcome("synthscars", root)
    assert [bool(reason) for reason in found.values()] == [True, False, False, False, False]
    assert list(found)[1:3] == ["train/8", "train/8 (2)"]


@pytest.mark.parametrize("pair", [None, "x", [], ["a"], ["a", 1], ["Tp/a.png", "Gt/a.png", "b"]])
def test_a_pair_of_another_structure(pair, tmp_path):
    root, _ = SETS["imdl"](tmp_path)
    put(root, [pair, *json.loads(root.read_bytes())])
    assert [bool(reason) for reason in outcome("imdl", root).values()] == [True, False, False]


def test_names_are_never_empty_and_never_twice(tmp_path):
    root, _ = SETS["imdl"](tmp_path)
    put(root, [["", "Negative"], ["a", "Negative"], ["a (2)", "Negative"], ["a", "Negative"]])
    assert list(outcome("imdl", root)) == ["(no name)", "a", "a (2)", "a (3)"]


def test_coco_with_wrong_ids_sizes_and_runs(tmp_path):
    root, _ = SETS["coco"](tmp_path)
    path = root / "annotations/instances.json"
    whole = json.loads(path.read_bytes())
    images, annotations = whole["images"], whole["annotations"]
    annotations += [None, {"image_id": 77}, {"image_id": True}]
    images[3]["width"] = W + 1
    images += [None, {"id": 9, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}]
    annotations[2]["segmentation"]["size"] = [W, H]
    annotations[3]["segmentation"]["counts"][0] += 1
    put(path, whole)
    found = outcome("coco", root)
    assert [name for name, reason in found.items() if not reason] == ["a.png"]
    assert "belongs to no image" in found["instances:annotation 4"]
    assert "no id of its own" in found["instances:image 4"] and len(found) == 10
    assert "[12, 10], not [10, 12]" in found["b.png"] and "run lengths" in found["c.png"]
    assert "13x10 pixels, its image 12x10" in found["d.png"]


@pytest.mark.parametrize(
    "text", ["{", "3", "null", "[]", "{}", '{"images": [], "annotations": []}']
)
def test_a_wrong_top_is_said_at_once(text, tmp_path):
    for name, place in (
        ("synthscars", "train/annotations/train.json"),
        ("imdl", "list.json"),
        ("coco", "instances.json"),
    ):
        path = put(tmp_path / name / place, text.encode())
        with pytest.raises(UserError, match=path.name):
            FORMATS[name].read(tmp_path / name, None)


def test_json_that_is_deep_or_large(tmp_path, monkeypatch):
    deep = put(tmp_path / "deep.json", b"[" * 1_000_000)
    with pytest.raises(UserError, match="no JSON"):
        files.read_json(deep)
    assert files.read_json(put(tmp_path / "small.json", [1])) == [1]
    monkeypatch.setattr(files, "MAX_JSON", 2)
    with pytest.raises(UserError, match="larger than 2 bytes"):
        files.read_json(tmp_path / "small.json")


def test_imdl_cuts_where_its_tools_do(tmp_path, monkeypatch):
    root, _ = SETS["imdl"](tmp_path)
    first = next(iter(imdl.read(root)))
    assert (first.read().mask == filled((0, 1, 1, 3))).all()
    monkeypatch.setattr(imdl, "CUT", 127)  # the test would see another cut
    assert (first.read().mask == filled((0, 1, 0, 3))).all()


def inside(points: list[list[int]], x: int, y: int) -> bool:
    """Of a convex polygon, clockwise on the screen: on the right of every edge, or on it."""
    ends = zip(points, points[1:] + points[:1], strict=True)
    return all((b[0] - a[0]) * (y - a[1]) >= (b[1] - a[1]) * (x - a[0]) for a, b in ends)


@pytest.mark.parametrize(
    "points",
    [
        [[2, 1], [5, 1], [5, 4], [2, 4]],
        [[2, 1], [7, 1], [2, 6]],
        [[4, 0], [8, 4], [4, 8], [0, 4]],
        [[-5, -5], [3, -5], [3, 3], [-5, 3]],
        [[0, 0], [W - 1, 0], [W - 1, H - 1], [0, H - 1]],
    ],
)
def test_a_convex_polygon_pixel_by_pixel(points):
    wanted = [[255 * inside(points, x, y) for x in range(W)] for y in range(H)]
    assert polygons([points], (H, W), "it").tolist() == wanted


def test_a_polygon_past_a_corner_marks_nothing():
    past = [[13, 8], [13, 12], [9, 12]]  # its box does meet the image
    with pytest.raises(UserError, match="cover nothing"):
        polygons([past], (H, W), "it")
    assert polygons([[[13, 6], [13, 12], [6, 6]]], (H, W), "it").any()


def test_boxes_are_rounded_outwards_and_cut():
    mask = boxes([[1.2, 2.7, 3.1, 3.3], [11, 8, 1e9, 1e9]], (H, W), "it")
    assert (mask == filled((2, 4, 1, 4), (8, H, 11, W))).all()


def test_run_lengths_against_the_tool_that_defines_them():
    draw = np.random.default_rng(0)
    for trial in range(200):
        h, w = (int(side) for side in draw.integers(1, 40, 2))
        mask = (draw.random((h, w)) < draw.random()).astype(np.uint8)
        rle = coco_tool.encode(np.asfortranarray(mask))
        columns = mask.T.ravel().tolist()
        runs, last = [0], 0
        for value in columns:
            runs += [0] if value != last else []
            runs[-1], last = runs[-1] + 1, value
        wanted = mask * 255
        assert (run_lengths(rle["counts"].decode(), (h, w), f"{trial}") == wanted).all()
        assert (run_lengths(runs, (h, w), f"{trial}") == wanted).all()


def test_damaged_run_lengths_are_refused():
    text, draw, refused = packed([11, 3, 7, 3, H * W - 24]), np.random.default_rng(0), 0
    for _ in range(2000):
        letters = list(text)
        letters[draw.integers(len(letters))] = chr(draw.integers(0, 300))
        damaged = "".join(letters)[: draw.integers(1, len(letters) + 1)]
        try:
            assert run_lengths(damaged, (H, W), "it").shape == (H, W)
        except UserError:
            refused += 1
    assert 1900 < refused
    for runs in ([], [-1, H * W + 1], [H * W + 1], [10**30], [H * W - 1]):
        with pytest.raises(UserError, match="run lengths"):
            run_lengths(runs, (H, W), "it")
