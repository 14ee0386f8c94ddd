"""Each published layout, byte for byte: the exact pixels, masks and words that come out of it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from core.samples import Record
from data_balancing.formats import FORMATS
from tests.data_balancing.sets import (
    EMPTY,
    EXPECTED,
    SETS,
    H,
    W,
    encoded,
    filled,
    picture,
    put,
    tarred,
)


def opened(name: str, folder: Path) -> dict:
    root, images = SETS[name](folder)
    return {entry.name: entry.read for entry in FORMATS[name].read(root, images)}


def entries(name: str, root: Path, images: Path | None = None) -> dict:
    return {entry.name: entry.read for entry in FORMATS[name].read(root, images)}


def refusal(read) -> str:
    with pytest.raises(UserError) as said:
        read()
    return str(said.value)


def jpeg(array: np.ndarray) -> np.ndarray:
    """What is left of an array after a JPEG, by Pillow alone."""
    return np.asarray(Image.open(io.BytesIO(encoded(array, "JPEG"))).convert("RGB"))


def test_every_format_is_tested():
    assert set(FORMATS) == set(SETS) == set(EXPECTED)


@pytest.mark.parametrize("name", FORMATS)
def test_pixels_masks_and_words(name, tmp_path):
    reads = opened(name, tmp_path)
    wanted = EXPECTED[name]
    names = [one[0] for one in wanted]
    assert [key for key in reads if key in names] == names  # in this order
    for key, seed, mask, said in wanted:
        found = reads[key]()
        if name == "plain" and key == "images/c.png":
            assert (found.image == picture(seed, 2 * H, 2 * W)).all()
        else:
            forms = [picture(seed), jpeg(picture(seed))]
            assert any(np.array_equal(found.image, form) for form in forms), key
        if mask is None:
            assert found.mask is None
        else:
            assert found.mask is not None and found.mask.dtype == np.uint8
            assert np.array_equal(found.mask, mask), key
            assert found.mask.flags.writeable and found.image.flags.writeable
        assert found.said == said, key
        Record(key="any", **found.said)
    for key in set(reads) - set(names):  # only what a set says it lacks
        assert key == "train:2" and "gone has no image" in refusal(reads[key])


@pytest.mark.parametrize("name", FORMATS)
def test_twice_the_same(name, tmp_path):
    first, second = list(opened(name, tmp_path / "a")), list(opened(name, tmp_path / "b"))
    assert first == second and len(set(first)) == len(first) > 1


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_folder_is_no_set(name, tmp_path):
    with pytest.raises(UserError, match="|".join(["it needs", "there is no image"])):
        list(FORMATS[name].read(tmp_path, tmp_path))
    assert FORMATS[name].what and FORMATS[name].needs_images == (name == "richhf")


def test_pal4vst_refuses_other_classes_sizes_and_halves(tmp_path):
    pal4vst_root, _ = SETS["pal4vst"](tmp_path)
    labels = tmp_path / "labels"
    other = EMPTY.copy()
    other[0, 0] = 7
    put(labels / "train/b.png", other)
    put(labels / "val/d.png", np.full((H, W), 1, np.uint8) * (np.arange(W) == 3).astype(np.uint8))
    put(tmp_path / "images/train/alone.jpg", picture(9))
    put(labels / "train/bare.png", EMPTY)
    put(tmp_path / "images/train/small.jpg", picture(9))
    put(labels / "train/small.png", EMPTY[1:])
    put(tmp_path / "images/train/rgb.jpg", picture(9))
    put(labels / "train/rgb.png", picture(9))
    reads = entries("pal4vst", pal4vst_root)
    assert "class 7" in refusal(reads["train/b"])
    assert "alone has no label" in refusal(reads["train/alone"])
    assert "bare has no image" in refusal(reads["train/bare"])
    assert "12x9 pixels, its image 12x10" in refusal(reads["train/small"])
    assert "RGB picture" in refusal(reads["train/rgb"])
    assert np.array_equal(reads["train/a"]().mask, filled((2, 5, 3, 7)))
    assert (reads["val/d"]().mask == filled((0, H, 3, 4))).all()  # a 1 anywhere in val: 255 is
    assert not reads["val/c"]().mask.any()  # ignored in all of it


def test_pal4vst_takes_the_indices_of_a_palette(tmp_path):
    root, _ = SETS["pal4vst"](tmp_path)
    label = Image.fromarray(filled((2, 5, 3, 7)) // 255).convert("P")
    label.putpalette([9, 9, 9, 200, 0, 0] + [0] * 762)
    label.save(tmp_path / "labels/train/a.png")
    assert np.array_equal(entries("pal4vst", root)["train/a"]().mask, filled((2, 5, 3, 7)))


def test_hadm_boxes_and_sizes(tmp_path):
    root, _ = SETS["hadm"](tmp_path)
    wrong = {
        "a": {"annotation": [{"bbox": [40, 2, 50, 3]}]},
        "b": {"annotation": [{"bbox": [1, 2, 3]}]},
        "c": {"image": {"height": H, "width": 10**15}, "annotation": []},
        "clean": {"human": []},
    }
    for stem, scene in wrong.items():
        put(tmp_path / f"annotations/train/{stem}.json", scene)
    reads = entries("hadm", root)
    assert "covers nothing" in refusal(reads["train/a"])
    assert "not four numbers" in refusal(reads["train/b"])
    assert "its image 12x10" in refusal(reads["train/c"])
    assert "annotation: Field required" in refusal(reads["train/clean"])


def test_hadm_never_opens_its_pickle(tmp_path):
    root, _ = SETS["hadm"](tmp_path)
    (tmp_path / "info.pkl").unlink()
    (tmp_path / "info.pkl").mkdir()  # opening it would raise
    assert len(entries("hadm", root)) == 4


def test_photographs_that_are_none(tmp_path):
    root, _ = SETS["photographs"](tmp_path)
    put(tmp_path / "text.jpg", b"not a picture")
    assert "none of PNG" in refusal(entries("photographs", root)["text.jpg"])


def test_plain_refuses_masks_of_another_shape_and_odd_words(tmp_path):
    root, _ = SETS["plain"](tmp_path)
    put(tmp_path / "masks/a.png", EMPTY[:, 1:-3])
    lines = ['{"file": "b.jpg", "seed": "many"}', '{"file": "c.png", "prompt": "\\ud800"}']
    put(tmp_path / "records.jsonl", "\n".join(lines).encode())
    reads = entries("plain", root)
    assert "another shape" in refusal(reads["images/a.png"])
    assert "what is said of" in refusal(reads["images/b.jpg"])
    assert "what is said of" in refusal(reads["images/c.png"])
    assert reads["real/r.jpg"]().said == {"source": "real"}


def test_plain_without_words(tmp_path):
    root, _ = SETS["plain"](tmp_path)
    (tmp_path / "prompts.jsonl").write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match="no JSON object"):
        list(FORMATS["plain"].read(root, None))


@pytest.mark.parametrize(
    "path", ["../x.png", "/etc/hostname", "link.png", "a\0b", "\ud800", "Tp", ""]
)
def test_no_path_leads_out_of_a_set(path, tmp_path):
    put(tmp_path / "x.png", picture(0))
    inner = tmp_path / "inner"
    root, _ = SETS["imdl"](inner)
    (inner / "link.png").symlink_to(tmp_path / "x.png")
    (root).write_text(json.dumps([[path, "Negative"], ["Tp/a.png", path]]))
    reads = list(FORMATS["imdl"].read(root, None))
    for entry in reads:
        entry.name.encode()
        assert any(part in refusal(entry.read) for part in ("leads out", "no file", "no path"))


def test_a_link_inside_the_set_is_followed(tmp_path):
    root, _ = SETS["imdl"](tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "Tp/a.png")
    put(root, [["link.png", "Negative"]])
    assert np.array_equal(entries("imdl", root)["link.png"]().image, picture(0))


def test_a_tar_tells_what_it_cannot_give(tmp_path):
    image, half = picture(0), encoded(picture(1), "JPEG")[:-60]
    tarred(tmp_path / "a.tar", a__jpg=half, b__json={"prompt": "x"}, c__jpg=image, d__png=image)
    tarred(tmp_path / "b.tar", c__jpg=image, c__mask_png=picture(1), d__jpg=image, d__json=b"[1]")
    tarred(tmp_path / "c.tar", e__jpg=image, e__mask_png=EMPTY[:, 1:-3], f__json={"seed": "many"})
    tarred(
        tmp_path / "d.tar",
        g__jpg=image,
        h__jpg=image,
        g__mask_png=EMPTY,
        i__jpg=b"",
        j__a_png=image,
    )
    reads = entries("webdataset", tmp_path)
    assert refusal(reads["a:a"]).endswith("replace it.") or "none of PNG" in refusal(reads["a:a"])
    assert "has no image (png, jpg, jpeg, webp)" in refusal(reads["a:b"])
    assert np.array_equal(reads["a:d"]().image, image)
    assert "is a picture in colours" in refusal(reads["b:c"])
    assert "d.json is no JSON object" in refusal(reads["b:d"])
    assert "another shape" in refusal(reads["c:e"])
    assert "has no image" in refusal(reads["c:f"])
    assert "stand one after the other" in refusal(reads["d:g (2)"])
    assert "none of PNG" in refusal(reads["d:i"]) and "has no image" in refusal(reads["d:j"])


@pytest.mark.parametrize(
    ("cut", "found"), [(700, 1), (512 * 9, 5), (-1024, 6), ("a header", 3)], ids=str
)
def test_a_tar_that_is_cut_off_is_told(cut, found, tmp_path):
    """Python's own reader takes a header that it cannot read for the end."""
    path = tarred(tmp_path / "a.tar", **{f"k{n}__png": picture(n) for n in range(6)})
    content = path.read_bytes()[: 6 * 1024 + 1024]  # without the padding
    broken = content[: 1024 * 3] + b"x" * 512 + content[1024 * 3 + 512 :]
    path.write_bytes(broken if isinstance(cut, str) else content[:cut])
    reads = entries("webdataset", path)
    assert set(reads) == {"a", *(f"a:k{n}" for n in range(found))}
    assert "download it again" in refusal(reads["a"])


def test_a_tar_names_its_reference(tmp_path):
    image = picture(0)
    members = {"a__png": image, "a__mask_png": EMPTY, "a__reference_png": picture(1)}
    members |= {"b__png": image, "b__mask_png": EMPTY, "b__reference_png": picture(1)[1:]}
    reads = entries("webdataset", tarred(tmp_path / "a.tar", **members, c__png=image))
    assert np.array_equal(reads["a:a"]().reference, picture(1))
    assert "another size" in refusal(reads["a:b"])
    assert reads["a:c"]().reference is None and reads["a:c"]().said == {"source": "pseudo"}


def test_the_control_a_whole_tar_is_read_to_its_end(tmp_path):
    tarred(tmp_path / "a.tar", **{f"k{n}__png": picture(n) for n in range(6)})
    assert list(entries("webdataset", tmp_path)) == [f"a:k{n}" for n in range(6)]
