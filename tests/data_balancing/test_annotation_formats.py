"""Each tool's files: the same contract for all, then what is peculiar to each."""

import json
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.image_files import encode_png
from data_balancing.annotation import TOOLS, label_studio
from tests.data_balancing.annotations import CASES, GUESSES, SIZES, damaged


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def region(mask, **said):
    height, width = mask.shape
    value = {"format": "rle", "rle": label_studio.encode_mask(mask), "brushlabels": ["artifact"]}
    sides = {"original_width": width, "original_height": height, "image_rotation": 0}
    return {"type": "brushlabels", "value": value, **sides, **said}


def tasks_of(works):
    """An export of the first case."""
    data = {"image": "/data/upload/1/0a1b2c3d-case-0.png", "key": "case-0"}
    return [{"id": 1, "data": data, "annotations": works, "predictions": []}]


def work(who, result, when="2024-05-01T10:00:00Z", **said):
    dates = {"created_at": "2024-01-01T00:00:00Z", "updated_at": when, "lead_time": 12.5}
    return {"completed_by": who, "result": result, "was_cancelled": False, **dates, **said}


def exported(tool, folder):
    """An export with the guesses as annotations, as if nobody had corrected them."""
    path = TOOLS[tool].write(CASES, folder)
    if tool == "label_studio":
        tasks = json.loads(path.read_text())
        for task in tasks:
            (guess,) = task.pop("predictions") or [{"result": []}]
            task["annotations"] = [work(7, guess["result"])]
        path = folder / "export.json"
        path.write_text(json.dumps(tasks))
    if tool == "png":
        for guess in (folder / "guesses").iterdir():
            (folder / "masks" / guess.name).write_bytes(guess.read_bytes())
    return path


@pytest.mark.parametrize("tool", TOOLS)
def test_guesses_come_back(tool, tmp_path):
    path = exported(tool, tmp_path / "out")
    found = {one.key: one for one in TOOLS[tool].read(path, SIZES)}
    soft = tool in ("label_studio", "png")
    expected = {k: g if soft else (g >= 128) * np.uint8(255) for k, g in GUESSES.items()}
    if tool == "png":
        del expected["case-2"]  # without a guess there is no mask to paint over
    assert found.keys() == expected.keys()
    for key, one in found.items():
        assert np.array_equal(one.mask, expected[key]), key
        assert one.tool.startswith(tool) and one.annotator


@pytest.mark.parametrize("tool", TOOLS)
def test_the_same_cases_are_the_same_bytes(tool, tmp_path):
    TOOLS[tool].write(CASES, tmp_path / "out")
    first = files(tmp_path / "out")
    TOOLS[tool].write(CASES, tmp_path / "out")
    assert files(tmp_path / "out") == first


def test_many_tasks_go_out_in_several_files(tmp_path, monkeypatch):
    whole = json.loads(label_studio.write(CASES, tmp_path / "one").read_bytes())
    monkeypatch.setattr(label_studio, "PART", 600)
    out, held = tmp_path / "several", []

    class Watched(list):
        """Says which files are there when a case is asked for."""

        def __iter__(self):
            for case in list.__iter__(self):
                held.append(len(list(out.glob("*.json"))))
                yield case

    path = label_studio.write(Watched(CASES), out)
    parts = sorted(out.glob(path.name))
    assert [part.name for part in parts] == ["to_annotate-001.json", "to_annotate-002.json"]
    assert all(part.stat().st_size <= 600 for part in parts[1:]) and held == [0, 0, 1]
    tasks = [task for part in parts for task in json.loads(part.read_bytes())]
    for task, one in zip(tasks, whole, strict=True):
        assert task["predictions"] == one["predictions"]
        assert task["data"]["key"] == one["data"]["key"]
    with pytest.raises(UserError, match="no export"):
        list(label_studio.read(out, SIZES))
    for part in parts:  # each is exported again by itself
        done = json.loads(part.read_bytes())
        for task in done:
            (guess,) = task.pop("predictions") or [{"result": []}]
            task["annotations"] = [work(7, guess["result"])]
        part.with_name(f"export-{part.name}").write_text(json.dumps(done))
    found = {one.key: one.mask for one in label_studio.read(out, SIZES)}
    assert all(np.array_equal(found[key], mask) for key, mask in GUESSES.items())


@pytest.mark.parametrize("tool", TOOLS)
def test_an_image_of_another_store_is_refused(tool, tmp_path):
    path = exported(tool, tmp_path / "out")
    with pytest.raises(UserError, match="not in the store"):
        list(TOOLS[tool].read(path, {}))


@pytest.mark.parametrize("tool", TOOLS)
def test_another_size_is_refused(tool, tmp_path):
    path = exported(tool, tmp_path / "out")
    with pytest.raises(UserError, match="pixels"):
        list(TOOLS[tool].read(path, dict.fromkeys(SIZES, (7, 7))))


@pytest.mark.parametrize("tool", ["label_studio", "cvat", "coco"])
def test_what_was_sent_is_no_export(tool, tmp_path):
    TOOLS[tool].write(CASES, tmp_path / "out")
    with pytest.raises(UserError, match="no export"):
        list(TOOLS[tool].read(tmp_path / "out", SIZES))


@pytest.mark.parametrize("tool", ["label_studio", "cvat", "coco"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_is_refused_or_harmless(tool, tmp_path, seed):
    path = tmp_path / tool / "export"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(exported(tool, tmp_path / tool / "out").read_bytes())
    hurt = tmp_path / tool / f"hurt{'.zip' if tool == 'cvat' else '.json'}"
    hurt.write_bytes(damaged(path.read_bytes(), np.random.default_rng(seed)))
    try:
        for one in TOOLS[tool].read(hurt, SIZES):
            assert one.mask.shape == SIZES[one.key] and one.mask.dtype == np.uint8
    except UserError:
        pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_xml_is_refused_or_harmless(tmp_path, seed):
    if not (tmp_path / "annotations.xml").exists():
        with zipfile.ZipFile(exported("cvat", tmp_path / "out")) as archive:
            (tmp_path / "annotations.xml").write_bytes(archive.read("annotations.xml"))
    hurt = tmp_path / "hurt.xml"
    hurt.write_bytes(
        damaged((tmp_path / "annotations.xml").read_bytes(), np.random.default_rng(seed))
    )
    try:
        assert all(one.mask.shape == SIZES[one.key] for one in TOOLS["cvat"].read(hurt, SIZES))
    except UserError:
        pass


class TestLabelStudio:
    def read(self, folder, tasks):
        (folder / "export.json").write_text(json.dumps(tasks))
        return list(label_studio.read(folder, SIZES))

    def test_every_annotator_is_kept(self, tmp_path):
        one, other = np.zeros((2, 6, 9), np.uint8)
        one[2, 3], other[0, 0], other[2, 3] = 200, 255, 90
        works = [
            work(1, [region(one), region(other)]),
            work({"id": 2, "email": "bo@example.org"}, [], "2024-05-02T00:00:00Z"),
            work(3, [region(one)], was_cancelled=True),
            work("1", [region(other)], "2024-04-01T00:00:00Z"),
        ]
        first, second = sorted(self.read(tmp_path, tasks_of(works)), key=lambda a: a.annotator)
        assert first.annotator == "1" and first.when == "2024-05-01T10:00:00Z"
        assert first.seconds == 12.5
        assert np.array_equal(first.mask, np.maximum(one, other))
        assert second.annotator == "bo@example.org" and not second.mask.any()

    def test_only_tasks_that_somebody_finished(self, tmp_path):
        assert self.read(tmp_path, tasks_of([])) == []
        tasks = tasks_of([work(1, [{"type": "choices", "value": {"choices": ["fine"]}}])])
        assert not self.read(tmp_path, tasks)[0].mask.any()

    @pytest.mark.parametrize(
        ("said", "cure"),
        [
            ({"image_rotation": 90}, "turn it back"),
            ({"original_width": 8}, "as they were exported"),
            ({"value": {"format": "png"}}, "format JSON"),
            ({"type": "rectanglelabels"}, "with the brush"),
            ({"value": "x"}, "export it again"),
        ],
    )
    def test_what_is_refused(self, said, cure, tmp_path):
        tasks = tasks_of([work(1, [region(np.zeros((6, 9), np.uint8), **said)])])
        with pytest.raises(UserError, match=cure):
            self.read(tmp_path, tasks)

    def test_the_prediction_is_a_soft_guess(self, tmp_path):
        task = json.loads(label_studio.write(CASES, tmp_path).read_text())[0]
        (prediction,) = task["predictions"]
        (item,) = prediction["result"]
        guess = label_studio.decode_mask(item["value"]["rle"], (6, 9), "x")
        assert np.array_equal(guess, GUESSES["case-0"])
        assert task["data"]["image"] == f"/data/local-files/?d={tmp_path.name}/images/case-0.png"
        assert (tmp_path / "images" / "case-0.png").is_file() and 0 < prediction["score"] <= 1


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><owner><username>boss</username></owner><assignee><username>ann</username></assignee>
</task><dumped>2024-05-01 10:00:00.000000+00:00</dumped></meta>
<image id="0" name="images/case-0.png" width="9" height="6">{shapes}</image></annotations>"""


class TestCvat:
    def read(self, folder, shapes, xml=CVAT):
        (folder / "carl.xml").write_text(xml.replace("{shapes}", shapes))
        return list(TOOLS["cvat"].read(folder, SIZES))

    def test_masks_polygons_and_boxes_are_laid_together(self, tmp_path):
        shapes = """<mask label="artifact" source="manual" rle="1, 3, 2" left="0" top="0" width="3"
            height="2"/><polygon label="artifact" points="4,4;6,4;6,6;4,6"/>
            <box label="artifact" xtl="7" ytl="0" xbr="9" ybr="1"/><tag label="odd"/>"""
        (one,) = self.read(tmp_path, shapes)
        expected = np.zeros((6, 9), np.uint8)
        expected[0, 1:3] = expected[1, 0] = expected[4:6, 4:6] = expected[0, 7:9] = 255
        assert np.array_equal(one.mask, expected)
        assert (one.annotator, one.tool) == ("ann", "cvat 1.1")
        assert one.when == "2024-05-01 10:00:00.000000+00:00"

    def test_without_an_assignee_the_file_names_the_person(self, tmp_path):
        xml = CVAT.replace("assignee", "nobody")
        assert self.read(tmp_path, "", xml)[0].annotator == "carl"

    @pytest.mark.parametrize(
        "shapes",
        [
            '<mask rle="54" left="0" top="0" width="9" height="7"/>',
            '<mask rle="1000000000000" left="0" top="0" width="9" height="6"/>',
            '<mask rle="" left="0" top="0" width="9" height="6"/>',
            '<mask rle="54" left="0" top="0" width="inf" height="6"/>',
            '<polyline points="1,2;3,4"/>',
            '<polygon points="1,2;3"/>',
            '<box xtl="a" ytl="0" xbr="1" ybr="1"/>',
        ],
    )
    def test_what_is_refused(self, shapes, tmp_path):
        with pytest.raises(UserError):
            self.read(tmp_path, shapes)

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    def test_no_entity_is_expanded(self, encoding, tmp_path):
        head = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        xml = CVAT.replace("utf-8", encoding).replace("<annotations>", f"{head}<annotations>&x;")
        (tmp_path / "a.xml").write_bytes(xml.encode(encoding))
        with pytest.raises(UserError, match="document type|valid XML"):
            list(TOOLS["cvat"].read(tmp_path / "a.xml", SIZES))

    def test_a_zip_is_read_by_one_name_only(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("../annotations.xml", CVAT)
        with pytest.raises(UserError, match="has no annotations.xml"):
            list(TOOLS["cvat"].read(tmp_path / "a.zip", SIZES))


class TestCoco:
    def read(self, folder, segmentation, **said):
        image = {"id": 5, "file_name": "x/case-0.png", "height": 6, "width": 9}
        instance = {"id": 1, "image_id": 5, "category_id": 1, "segmentation": segmentation, **said}
        info = {"contributor": "ann", "date_created": "2024/05/01", "version": "2"}
        whole = {"info": info, "images": [image], "annotations": [instance]}
        (folder / "export.json").write_text(json.dumps(whole))
        (one,) = TOOLS["coco"].read(folder, SIZES)
        return one

    def test_polygons_and_plain_runs(self, tmp_path):
        polygon = self.read(tmp_path, [[1, 1, 3, 1, 3, 4, 1, 4], [7, 0, 9, 0, 9, 1, 7, 1]])
        expected = np.zeros((6, 9), np.uint8)
        expected[1:4, 1:3] = expected[0, 7:9] = 255
        assert np.array_equal(polygon.mask, expected)
        assert polygon[1:2] + polygon[3:5] == ("ann", "2024/05/01", "coco 2")
        runs = self.read(tmp_path, {"size": [6, 9], "counts": [0, 2, 51, 1]})
        assert runs.mask.ravel(order="F").nonzero()[0].tolist() == [0, 1, 53]

    @pytest.mark.parametrize("nothing", [[], [[]]])
    def test_a_box_alone_is_not_sound(self, nothing, tmp_path):
        with pytest.raises(UserError, match="draw a polygon or mask"):
            self.read(tmp_path, nothing, bbox=[1, 1, 3, 2])

    def test_the_score_goes_out(self, tmp_path):
        whole = json.loads(TOOLS["coco"].write(CASES, tmp_path).read_text())
        (instance,) = whole["annotations"]
        guess = GUESSES["case-0"]
        assert instance["score"] == pytest.approx(guess[guess >= 128].mean() / 255, abs=1e-4)
        assert instance["area"] == (guess >= 128).sum()

    @pytest.mark.parametrize(
        ("segmentation", "said"),
        [
            ({"size": [10**6, 10**6], "counts": [10**12]}, {}),
            ({"size": [6, 9], "counts": [10**12]}, {}),
            ({"size": [6, 9], "counts": "~~~"}, {}),
            ([[1, 2, 3]], {}),
            ([[1, 2, 3, 4, 5, 1e300]], {}),
            ([[1, 1, 3, 1, 3, 4]], {"image_id": 6}),
            (None, {}),
        ],
    )
    def test_what_is_refused(self, segmentation, said, tmp_path):
        with pytest.raises(UserError):
            self.read(tmp_path, segmentation, **said)


def test_guesses_that_nobody_touched_are_no_labels(tmp_path):
    path = TOOLS["png"].write(CASES, tmp_path)
    (path / "masks/.DS_Store").write_bytes(b"of a file manager")
    with pytest.raises(UserError, match="no finished annotation"):
        list(TOOLS["png"].read(path, SIZES))
    (path / "masks/case-0.png").write_bytes((path / "guesses/case-0.png").read_bytes())
    assert [one.key for one in TOOLS["png"].read(path, SIZES)] == ["case-0"]


def test_pictures_of_several_annotators(tmp_path):
    for name, level in (("annotators/ann", 80), ("annotators/bo", 255), ("masks", 40)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "case-0.png").write_bytes(encode_png(np.full((6, 9), level, np.uint8)))
    found = list(TOOLS["png"].read(tmp_path, SIZES))
    assert [(one.annotator, int(one.mask.max())) for one in found] == [
        ("ann", 80), ("bo", 255), ("painter", 40),
    ]  # fmt: skip
    assert all(one.when.endswith("+00:00") for one in found)
