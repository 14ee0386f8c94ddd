"""The real program on sets of each format: what lies in the store, what is set aside, and why."""

import errno
import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from core import shard_writer
from core.errors import UserError
from core.samples import Record, Sample
from core.shards import ShardStore
from core.storage import alone
from data_balancing import check, import_data, preview, stats
from data_balancing.looks import Seen, phash, pixels
from detector.groups import NEAR
from tests.data_balancing import sets


def bring(form: str, path: Path, out: Path, **changes) -> ShardStore:
    import_data.main(import_data.Config(format=form, path=path, out=out, **changes))
    return ShardStore(out)


def photographs(folder: Path, n: int = 3) -> Path:
    folder.mkdir(parents=True)
    for i in range(n):
        levels = np.random.default_rng(i).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(levels).save(folder / f"{i}.png")
    return folder


def aside(out: Path, name: str) -> dict[str, str]:
    lines = (out / f"{name}.quarantine.jsonl").read_text().splitlines()
    return {said["name"]: said["reason"] for said in map(json.loads, lines)}


def test_a_set_becomes_samples(tmp_path):
    path, _ = sets.pal4vst(tmp_path / "set")
    store = bring("pal4vst", path, tmp_path / "out", licence="theirs")
    assert [sample.mask.any() for sample in store] == [True, False, True, False]
    first = store[0]
    assert first.record.source == "human" and first.record.licence == "theirs"
    assert first.record.pixels == pixels(first.image)
    assert first.record.phash == phash(first.image)
    assert aside(tmp_path / "out", "pal4vst") == {}


def test_several_sets_go_into_one_store_and_copies_do_not(tmp_path, capsys):
    folder = photographs(tmp_path / "a")
    bring("photographs", folder, tmp_path / "out", name="first")
    shutil.copytree(folder, tmp_path / "b")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "b/new.png")
    store = bring("photographs", tmp_path / "b", tmp_path / "out", name="second")
    assert len(store) == 4 and {r.source for r in store.records()} == {"real"}
    reasons = aside(tmp_path / "out", "second")
    assert len(reasons) == 3 and all("same pixels as first-" in r for r in reasons.values())
    assert "3 set aside" in capsys.readouterr().out


def webp(path: Path, seed: int) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(levels).save(path, "WEBP", lossless=True)
    return levels


def lsun(folder: Path) -> list[np.ndarray]:
    """As its data.py exports: below the key's first six letters, called .webp whatever it holds."""
    keys = [hashlib.sha1(bytes([i])).hexdigest() for i in range(3)]
    paths = sorted(folder / "/".join(key[:6]) / f"{key}.webp" for key in keys)
    kept = [webp(path, seed) for seed, path in enumerate(paths)]
    Image.fromarray(kept[2]).save(paths[2], "JPEG")  # as LSUN's README has it
    kept[2] = np.asarray(Image.open(paths[2]).convert("RGB"))
    return kept


def test_what_lsun_exports_comes_in_as_real(tmp_path):
    kept = lsun(tmp_path / "bedroom")
    store = bring("photographs", tmp_path / "bedroom", tmp_path / "out")
    assert [np.array_equal(s.image, levels) for s, levels in zip(store, kept, strict=True)] == [
        True, True, True,
    ]  # fmt: skip
    assert all(s.record.source == "real" and not s.mask.any() for s in store)
    assert aside(tmp_path / "out", "photographs") == {}


def test_lsuns_own_lmdb_is_refused_with_its_way_out(tmp_path):
    base = tmp_path / "bedroom_train_lmdb"
    base.mkdir()
    for name in ("data.mdb", "lock.mdb"):
        (base / name).write_bytes(bytes(64))
    for path in (base, tmp_path):  # or the folder of several
        with pytest.raises(UserError, match="python2.7 data.py export .* --out_dir FOLDER"):
            bring("photographs", path, tmp_path / "out")
    webp(tmp_path / "more/a.webp", 0)
    assert len(bring("photographs", tmp_path, tmp_path / "out")) == 1  # images go first


@pytest.mark.parametrize(
    "names",
    [
        ("images1024x1024/00000/00000.png", "images1024x1024/01000/01000.png"),  # FFHQ
        ("CelebA-HQ-img/0.jpg", "CelebA-HQ-img/1.jpg"),
        ("jpg/image_00001.jpg", "jpg/image_00002.jpg"),  # Flowers 102
        ("train/n01440764/n01440764_18.JPEG", "train/n01443537/n01443537_2.JPEG"),  # ImageNet
    ],
)
def test_other_published_trees_come_in_as_real(names, tmp_path):
    for i, name in enumerate(names):
        sets.put(tmp_path / "set" / name, sets.picture(i, 40, 48))
    (tmp_path / "set/imagelabels.mat").write_bytes(bytes(8))  # what is no image is left alone
    store = bring("photographs", tmp_path / "set", tmp_path / "out")
    assert [record.source for record in store.records()] == ["real", "real"]
    assert aside(tmp_path / "out", "photographs") == {}


def test_one_name_is_one_set(tmp_path):
    bring("photographs", photographs(tmp_path / "a"), tmp_path / "out")
    with pytest.raises(UserError, match="give this one a --name of its own"):
        bring("photographs", photographs(tmp_path / "b"), tmp_path / "out")


def test_what_no_store_would_read_is_set_aside(tmp_path):
    folder = tmp_path / "set"
    photographs(folder / "real")
    line = {"file": "1.png", "caption": "x" * 1_100_000}
    (folder / "records.jsonl").write_text(json.dumps(line))
    store = bring("plain", folder, tmp_path / "out")
    assert [record.caption for record in store.records()] == [None, None]
    assert "more than 1000000" in aside(tmp_path / "out", "plain")["real/1.png"]


def test_a_full_disk_stops_the_import_and_the_command_goes_on(tmp_path, monkeypatch):
    folder = photographs(tmp_path / "a")
    write, left = shard_writer._HashedFile.write, [4000]

    def filling(self, content):
        left[0] -= len(content)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer._HashedFile, "write", filling)
        with pytest.raises(UserError, match="disk full"):
            bring("photographs", folder, tmp_path / "out")
    assert len(bring("photographs", folder, tmp_path / "out")) == 3
    assert aside(tmp_path / "out", "photographs") == {}


def test_what_is_mended_comes_in_by_the_same_command(tmp_path):
    folder = photographs(tmp_path / "a")
    good = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(good[:100])
    store = bring("photographs", folder, tmp_path / "out")
    assert len(store) == 2
    assert "damaged" in aside(tmp_path / "out", "photographs")["1.png"]
    (folder / "1.png").write_bytes(good)
    shards = {p: p.read_bytes() for p in (tmp_path / "out").glob("*.tar")}
    assert len(bring("photographs", folder, tmp_path / "out")) == 3
    assert aside(tmp_path / "out", "photographs") == {}
    assert all(path.read_bytes() == content for path, content in shards.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "richhf"}, "name their folder by --images"),
        ({"path": Path("nowhere")}, "there is no nowhere"),
        ({"images": Path("nowhere")}, "check --images"),
        ({"format": "pal4vst"}, "is no PAL4VST"),
    ],
    ids=str,
)
def test_refused_with_the_cure(tmp_path, changes, said):
    folder = photographs(tmp_path / "a")
    given = {"format": "photographs", "path": folder, "out": tmp_path / "out"} | changes
    with pytest.raises(UserError, match=said):
        import_data.main(import_data.Config(**given))


def test_a_format_that_is_none_suggests_one(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'photographs'"):
        import_data.Config(format="photograph", path=tmp_path, out=tmp_path / "out")


def test_a_near_duplicate_has_a_near_hash():
    """A picture with structure, saved again as JPEG and a little smaller, against another one."""
    y, x = np.mgrid[0:128, 0:128] / 128
    planes = [np.sin(7 * x + 3 * y), np.cos(5 * x * y), np.sin(9 * y)]
    image = Image.fromarray((127 + 120 * np.stack(planes, -1)).astype(np.uint8))
    small = np.asarray(image.resize((120, 120)))
    assert pixels(small) != pixels(np.asarray(image))
    word, near = (int(phash(np.asarray(one)), 16) for one in (image, small))
    assert (word ^ near).bit_count() <= NEAR
    other = int(phash(np.asarray(image.rotate(90))), 16)
    assert (word ^ other).bit_count() > 3 * NEAR


def test_pixels_know_their_sides():
    flat = np.arange(24, dtype=np.uint8)
    assert pixels(flat.reshape(2, 4, 3)) != pixels(flat.reshape(4, 2, 3))
    seen = Seen()
    seen.add(pixels(flat.reshape(2, 4, 3)), "a")
    assert seen.key_of(pixels(flat.reshape(2, 4, 3))) == "a"
    assert seen.key_of(pixels(flat.reshape(4, 2, 3))) is None


def broken_folder(folder: Path) -> Path:
    """Each file but `good` has a fault of its own."""
    for kind in ("images", "masks", "real"):
        (folder / kind).mkdir(parents=True)
    levels = np.random.default_rng(0)
    shapes = {"good": (40, 40), "small": (20, 20), "shape": (40, 40), "ones": (40, 40)}
    for name, shape in shapes.items():
        image = levels.integers(0, 256, (*shape, 3), np.uint8)
        Image.fromarray(image).save(folder / f"images/{name}.png")
        mask = np.zeros((40, 60) if name == "shape" else shape, np.uint8)
        mask[:4] = 1 if name == "ones" else 255
        Image.fromarray(mask).save(folder / f"masks/{name}.png")
    Image.fromarray(np.full((40, 40, 3), 7, np.uint8)).save(folder / "real/flat.png")
    shutil.copy(folder / "images/good.png", folder / "real/copy.png")
    return folder


def test_check_names_every_fault_and_keeps_the_rest(tmp_path):
    folder = broken_folder(tmp_path / "data")
    given = check.Config(data=folder, keep=tmp_path / "kept", json_file=tmp_path / "found.json")
    assert check.main(given) == 1
    said = json.loads((tmp_path / "found.json").read_text())
    reasons = {finding["key"]: finding["reason"] for finding in said["findings"]}
    expected = {
        "small": "20x20",
        "shape": "of another shape",
        "ones": "above 1 of 255",
        "real-flat": "of one colour",
        "real-copy": "same pixels as good",
    }
    assert reasons.keys() == expected.keys() and said["sound"] == 1
    assert all(expected[key] in reasons[key] for key in expected)
    kept = ShardStore(tmp_path / "kept")
    assert kept.keys == ["good"] and kept[0].record.pixels == pixels(kept[0].image)
    assert check.main(check.Config(data=tmp_path / "kept")) is None


def test_check_takes_the_maps_that_a_detector_writes(tmp_path):
    """Their sides are those of its input, which is rounded; a person's are the image's."""
    images = photographs(tmp_path / "data/images", 2)
    levels = np.random.default_rng(9).integers(0, 256, (64, 70, 3), np.uint8)
    for name in ("0", "1"):
        Image.fromarray(levels + np.uint8(int(name))).save(images / f"{name}.png")
    (images.parent / "masks").mkdir()
    Image.new("L", (32, 32), 255).save(images.parent / "masks/0.png")
    Image.new("L", (64, 64), 255).save(images.parent / "masks/1.png")
    given = check.Config(data=images.parent, json_file=tmp_path / "found.json")
    assert check.main(given) == 1
    said = json.loads((tmp_path / "found.json").read_text())
    assert [finding["key"] for finding in said["findings"]] == ["1"]


def strayed(folder: Path) -> Path:
    """Two images, and five files that are of no use to either."""
    photographs(folder / "images", 2)
    (folder / "masks").mkdir()
    for name in ("masks/0.png", "masks/nobody.png", "masks/1_mask.png"):
        Image.new("L", (48, 40), 255).save(folder / name)
    Image.new("L", (48, 40), 255).save(folder / "masks/1.tif")
    Image.new("RGB", (48, 40), "red").save(folder / "images/old.bmp")
    Image.new("RGB", (48, 40), "blue").save(folder / "images/0.jpg")
    return folder


STRAY = {
    "masks/nobody.png": "no image is called nobody",
    "masks/1_mask.png": "no image is called 1_mask",
    "masks/1.tif": "save it as",
    "images/old.bmp": "save it as",
}


def test_import_and_check_name_what_belongs_to_nothing(tmp_path):
    folder = strayed(tmp_path / "data")
    bring("plain", folder, tmp_path / "out")
    reasons = aside(tmp_path / "out", "plain")
    expected = {**STRAY, "images/0.png": "the stem of 0.jpg"}
    assert reasons.keys() == expected.keys()
    assert all(said in reasons[name] for name, said in expected.items())
    keep, json_file = tmp_path / "kept", tmp_path / "found.json"
    assert check.main(check.Config(data=folder, keep=keep, json_file=json_file)) == 1
    said = json.loads(json_file.read_text())
    reasons = {finding["key"]: finding["reason"] for finding in said["findings"]}
    expected = {**STRAY, "0": "another one has its name"}
    assert all(reason in reasons.pop(name) for name, reason in expected.items())
    assert list(reasons) == [] and said["sound"] == len(ShardStore(keep)) == 2


def test_a_path_that_was_wrong_does_not_hold_the_name(tmp_path):
    path, _ = sets.pal4vst(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    for form, wrong in (("pal4vst", "empty"), ("photographs", "empty"), ("plain", "empty")):
        with pytest.raises(UserError):
            bring(form, tmp_path / wrong, tmp_path / "out")
    assert len(bring("pal4vst", path, tmp_path / "out")) == 4


def test_a_path_of_which_nothing_could_be_used_does_not_hold_the_name(tmp_path):
    bad = photographs(tmp_path / "bad", 1)
    (bad / "0.png").write_bytes(b"no picture")
    given = {"format": "photographs", "path": bad, "out": tmp_path / "out"}
    assert import_data.main(import_data.Config.model_validate(given)) == 1
    assert len(bring("photographs", photographs(tmp_path / "good"), tmp_path / "out")) == 3


def test_a_set_with_labels_is_no_folder_of_photographs(tmp_path):
    photographs(tmp_path / "set/images")
    (tmp_path / "set/masks").mkdir()
    with pytest.raises(UserError, match="a set with labels"):
        bring("photographs", tmp_path / "set", tmp_path / "out")
    assert len(bring("photographs", tmp_path / "set/images", tmp_path / "out")) == 3


def test_a_published_split_comes_alone(tmp_path):
    path, _ = sets.pal4vst(tmp_path / "set")
    store = bring("pal4vst", path, tmp_path / "out", split="train")
    assert [key.split("-")[1:3] for key in store.keys] == [["train", "a"], ["train", "b"]]
    assert len(bring("pal4vst", path, tmp_path / "out", split="val")) == 4
    with pytest.raises(UserError, match="no images of a split 'vall'"):
        bring("pal4vst", path, tmp_path / "out", split="vall")


def test_two_imports_do_not_write_into_one_store_at_once(tmp_path):
    folder = photographs(tmp_path / "a")
    (tmp_path / "out").mkdir()
    with alone(tmp_path / "out/.import.lock", ""):
        with pytest.raises(UserError, match="another import"):
            bring("photographs", folder, tmp_path / "out")
    assert len(bring("photographs", folder, tmp_path / "out")) == 3


def test_check_keeps_the_sound_one_of_two_copies(tmp_path):
    """The first has a mask that cannot be right: it must not cost its copy."""
    folder = photographs(tmp_path / "data/images", 1).parent
    shutil.copy(folder / "images/0.png", folder / "images/1.png")
    (folder / "masks").mkdir()
    for name, size in (("0", (40, 90)), ("1", (48, 40))):
        Image.new("L", size, 255).save(folder / f"masks/{name}.png")
    assert check.main(check.Config(data=folder, keep=tmp_path / "kept")) == 1
    assert ShardStore(tmp_path / "kept").keys == ["1"]


def test_check_goes_on_after_a_damaged_sample(tmp_path):
    folder = photographs(tmp_path / "a")
    bring("photographs", folder, tmp_path / "out")
    (shard,) = (tmp_path / "out").glob("*.tar")
    content = bytearray(shard.read_bytes())
    content[content.rindex(b"IDAT") + 8] ^= 1  # the last image
    shard.write_bytes(content)
    given = check.Config(data=tmp_path / "out", json_file=tmp_path / "found.json")
    assert check.main(given) == 1
    said = json.loads((tmp_path / "found.json").read_text())
    assert said["sound"] == 2 and "is damaged" in said["findings"][0]["reason"]


def test_check_makes_a_lost_index_again(tmp_path, capsys):
    bring("photographs", photographs(tmp_path / "a"), tmp_path / "out")
    (index,) = (tmp_path / "out").glob("*.index.jsonl")
    index.unlink()
    with pytest.raises(UserError, match="diffdoctor data check"):
        ShardStore(tmp_path / "out")
    assert check.main(check.Config(data=tmp_path / "out")) is None
    assert f"{index.name} was missing or damaged" in capsys.readouterr().out
    assert len(ShardStore(tmp_path / "out")) == 3


def test_stats_count_and_preview_shows(tmp_path, capsys):
    path, _ = sets.pal4vst(tmp_path / "set")
    bring("pal4vst", path, tmp_path / "out")
    photographs(tmp_path / "a")
    bring("photographs", tmp_path / "a", tmp_path / "out")
    stats.main(stats.Config(data=(tmp_path / "out",), json_file=tmp_path / "stats.json"))
    said = json.loads((tmp_path / "stats.json").read_text())
    assert said["all"]["all"]["samples"] == 7 and said["all"]["all"]["marked"] == 2
    assert {name: one["samples"] for name, one in said["source"].items()} == {"human": 4, "real": 3}
    marked = [ShardStore(tmp_path / "out")[i].mask for i in range(4)]
    share = np.mean([mask.mean() / 255 for mask in marked])
    assert said["source"]["human"]["area"] == pytest.approx(share)
    assert said["groups"] == 7

    sheet = tmp_path / "sheet.png"
    preview.main(preview.Config(data=(tmp_path / "out",), out=sheet, marked=True))
    with Image.open(sheet) as picture:
        assert picture.height > 2 * 10 and picture.width > 3 * 12
    assert "2 of 2 samples" in capsys.readouterr().out
    with pytest.raises(UserError, match="no sample fits"):
        preview.main(preview.Config(data=(tmp_path / "out",), out=sheet, category="hand"))


def test_little_is_held_of_a_sample_that_was_counted():
    """A record alone takes 1.7 KB."""
    image, mask, draw = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), Random(0)
    tally, n = stats.Tally(), 4000
    tracemalloc.start()
    try:
        for i in range(n):
            said = {"prompt": f"a hand that holds {i} keys by a window", "source": "human"}
            record = Record(key=f"s-{i}", phash=f"{draw.getrandbits(64):016x}", **said)
            tally.add(Sample(record.key, image, mask, record), 0.5)
        held = tracemalloc.get_traced_memory()[0] / n
        figures = tally.figures()
        most = tracemalloc.get_traced_memory()[1] / n
    finally:
        tracemalloc.stop()
    assert 50 < held < 150 and most < 400  # bytes
    assert figures["prompts"] == figures["groups"] == n


def test_the_sound_image_that_one_was_made_from_comes_along(tmp_path):
    folder = tmp_path / "set"
    photographs(folder / "images")
    photographs(folder / "references", 2)
    Image.new("RGB", (9, 9)).save(folder / "references/1.png")
    (folder / "masks").mkdir()
    for i in (0, 1, 2):
        Image.new("L", (48, 40), 255).save(folder / f"masks/{i}.png")
    with_one, without = bring("plain", folder, tmp_path / "out")
    assert with_one.record.referenced and (with_one.reference == with_one.image).all()
    assert not without.record.referenced and without.reference is None
    assert "of another size" in aside(tmp_path / "out", "plain")["images/1.png"]
