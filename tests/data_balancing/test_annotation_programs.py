"""The two programs: cases out, masks of several people back, nothing repeated, nothing lost."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.heatmap import colourise
from core.image_files import encode_png
from core.samples import Record, Sample
from core.shards import ShardStore
from data_balancing import annotate_in, annotate_out, preview
from data_balancing.annotation import TOOLS
from detector.maps import upsample
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector
from tests.data_balancing.annotations import CASES, GUESSES, store_of


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def send(store, out, tool="png", **said):
    annotate_out.main(annotate_out.Config(store=store, out=out, tool=tool, **said))
    return out


def take(exported, store, out, **said):
    annotate_in.main(annotate_in.Config(exported=exported, store=store, out=out, **said))
    return out


def paint(folder, name, key, level):
    path = folder / "annotators" / name / f"{key}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full(GUESSES[key].shape, level, np.uint8)))


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "store")


@pytest.mark.parametrize("tool", TOOLS)
def test_out_and_the_same_again(tool, store, tmp_path, capsys):
    keys = tmp_path / "keys.txt"
    keys.write_text("case-2\ncase-0\ncase-2\n")
    send(store, tmp_path / "out", tool, keys=keys)
    first = files(tmp_path / "out")
    assert json.loads(first[Path("annotate.json")])["images"] == 2
    capsys.readouterr()
    send(store, tmp_path / "out", tool, keys=keys)
    assert "nothing to do" in capsys.readouterr().out and files(tmp_path / "out") == first
    with pytest.raises(UserError, match="another --out"):
        send(store, tmp_path / "out", tool)


def stopped(*_):
    raise KeyboardInterrupt


def test_out_goes_on_where_it_was_stopped(store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(TOOLS, "cvat", TOOLS["cvat"]._replace(write=stopped))
        send(store, tmp_path / "out", "cvat")
    send(store, tmp_path / "out", "cvat")
    assert files(tmp_path / "out") == files(send(store, tmp_path / "other", "cvat"))


def test_out_refuses_unknown_keys_and_full_folders(store, tmp_path):
    (tmp_path / "keys.txt").write_text("case-00")
    with pytest.raises(UserError, match="did you mean 'case-0'"):
        send(store, tmp_path / "out", keys=tmp_path / "keys.txt")
    with pytest.raises(UserError, match="empty folder"):
        send(store, store)


def test_a_detector_makes_the_guesses(store, tmp_path):
    save_detector(SegformerDetector(SegformerConfig(prior=0.3)).eval(), tmp_path / "d", {})
    out = send(store, tmp_path / "out", detector=tmp_path / "d", device="cpu")
    (out / "annotators").mkdir()
    (out / "guesses").rename(out / "annotators" / "ann")
    masks = {
        one.key: one.mask for one in TOOLS["png"].read(out, annotate_in.Sizes(ShardStore(store)))
    }
    assert masks.keys() == GUESSES.keys()
    assert all(0 < mask.mean() < 255 for mask in masks.values())
    with pytest.raises(UserError, match="another --out"):
        send(store, tmp_path / "out")


def test_a_small_mask_is_brought_to_its_image(tmp_path):
    case = CASES[0]._replace(guess=np.full((2, 3), 200, np.uint8))
    (found,) = annotate_out.Cases(ShardStore(store_of(tmp_path / "s", [case])), ["case-0"], None)
    assert found.guess.shape == (6, 9) and (found.guess == 200).all()


def test_annotators_and_sheets_show_what_a_detector_showed():
    levels = np.array([[230, 0], [0, 0]], np.uint8)
    said = Record(key="a", source="pseudo")
    sample = Sample("a", np.zeros((8, 8, 3), np.uint8), levels, said)
    logits = torch.logit(torch.tensor(levels)[None, None] / 255, eps=1 / 510)
    near = torch.arange(8) < 6  # of the marked cell; elsewhere there is nothing
    shown = torch.sigmoid(upsample(logits, (8, 8))) * (near & near[:, None])
    guess = annotate_out.label_of(sample)
    assert np.array_equal(guess, (255 * shown[0, 0]).round().numpy())
    assert 0 < guess[2, 4] < 40  # by the levels, between two cells, it would be 76
    assert torch.equal(preview.pictures(sample)[1], colourise(shown)[0])


def test_several_annotators_come_back(store, tmp_path, capsys):
    out = send(store, tmp_path / "out")
    for name, key, level in (("ann", "case-0", 255), ("bo x", "case-0", 0), ("ann", "case-2", 40)):
        paint(out, name, key, level)
    labelled = take(out, store, tmp_path / "labelled", tool_version="3.1")
    samples = {sample.key: sample for sample in ShardStore(labelled)}
    assert list(samples) == ["case-0", "case-2"]
    assert (samples["case-0"].mask == 128).all() and (samples["case-2"].mask == 40).all()
    record = samples["case-0"].record
    assert (record.source, record.teacher, record.prompt) == ("human", "", CASES[0].prompt)
    assert np.array_equal(samples["case-0"].image, CASES[0].image)
    lines = [json.loads(line) for line in (labelled / "annotations.jsonl").read_text().splitlines()]
    assert {(line["key"], line["annotator"], line["tool"]) for line in lines} == {
        ("case-0", "ann", "png 3.1"),
        ("case-0", "bo x", "png 3.1"),
        ("case-2", "ann", "png 3.1"),
    }
    assert len(list(labelled.glob("annotators/*/*.png"))) == 3
    assert json.loads((labelled / "agreement.json").read_text())["iou"] == 0
    assert "IoU 0.000" in capsys.readouterr().out


def test_in_again_repeats_nothing_and_adds_what_is_new(store, tmp_path):
    out, labelled = send(store, tmp_path / "out"), tmp_path / "labelled"
    paint(out, "ann", "case-0", 255)
    first = files(take(out, store, labelled))
    assert files(take(out, store, labelled)) == first
    paint(out, "ann", "case-2", 255)
    take(out, store, labelled)
    assert ShardStore(labelled).keys == ["case-0", "case-2"]


def test_in_loses_no_mask_in_silence(store, tmp_path):
    out, labelled = send(store, tmp_path / "out"), tmp_path / "labelled"
    paint(out, "ann", "case-0", 255)
    first = files(take(out, store, labelled))
    paint(out, "ann", "case-0", 9)
    with pytest.raises(UserError, match="otherwise"):
        take(out, store, labelled)
    paint(out, "ann", "case-0", 255)
    paint(out, "bo", "case-0", 255)
    with pytest.raises(UserError, match="finished without bo"):
        take(out, store, labelled)
    assert files(labelled) == first


def test_in_mixes_no_sources(store, tmp_path):
    out, labelled = send(store, tmp_path / "out"), tmp_path / "labelled"
    paint(out, "ann", "case-0", 255)
    first = files(take(out, store, labelled, source="hard"))
    paint(out, "ann", "case-2", 255)
    with pytest.raises(UserError, match="holds labels of source hard.*--source human"):
        take(out, store, labelled)
    assert files(labelled) == first
    take(out, store, labelled, source="hard")
    assert {record.source for record in ShardStore(labelled).records()} == {"hard"}


def test_in_goes_on_where_it_was_stopped(store, tmp_path, monkeypatch):
    out, labelled = send(store, tmp_path / "out"), tmp_path / "labelled"
    paint(out, "ann", "case-0", 255)
    paint(out, "ann", "case-2", 255)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(annotate_in, "soft_label", stopped)
        take(out, store, labelled)
    paint(out, "bo", "case-0", 0)  # not finished yet, so that it still counts
    take(out, store, labelled)
    masks = {sample.key: int(sample.mask.max()) for sample in ShardStore(labelled)}
    assert masks == {"case-0": 128, "case-2": 255}


def test_the_tool_is_recognised(store, tmp_path):
    for tool in ("label_studio", "cvat", "coco"):
        path = TOOLS[tool].write(CASES, tmp_path / tool)
        assert annotate_in.recognised(path) == tool
    with pytest.raises(UserError, match="no export"):
        annotate_in.recognised(tmp_path / "label_studio")
    (tmp_path / "label_studio/project-1.json").write_text("[]")
    assert annotate_in.recognised(tmp_path / "label_studio") == "label_studio"
    assert annotate_in.recognised(send(store, tmp_path / "out")) == "png"
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UserError, match="--tool"):
        annotate_in.recognised(tmp_path / "x.txt")
    with pytest.raises(UserError, match="no finished annotation"):
        take(tmp_path / "label_studio" / "to_annotate.json", store, tmp_path / "labelled")
