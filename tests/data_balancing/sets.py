"""Small data sets byte for byte in each published layout, and the masks that they must give.

Every image is 10 high and 12 wide unless it says otherwise.
"""

import io
import json
import struct
import tarfile
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

H, W = 10, 12
EMPTY = np.zeros((H, W), np.uint8)
HUMAN, REAL, PSEUDO = ({"source": source} for source in ("human", "real", "pseudo"))


def picture(seed: int, h: int = H, w: int = W) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def encoded(array: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=form)
    return buffer.getvalue()


def put(path: Path, content: bytes | np.ndarray | list | dict) -> Path:
    """An array as an image by its suffix, a list or dict as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        content = encoded(content, "PNG" if path.suffix == ".png" else "JPEG")
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def filled(*parts: tuple[int, int, int, int], h: int = H, w: int = W) -> np.ndarray:
    """255 in each (top, bottom, left, right), ends not included."""
    mask = np.zeros((h, w), np.uint8)
    for top, bottom, left, right in parts:
        mask[top:bottom, left:right] = 255
    return mask


Made = tuple[Path, Path | None]


def pal4vst(folder: Path) -> Made:
    """train: classes 0, 1, 255; val: 0 and 255 only."""
    for n, stem in enumerate(["train/a", "train/b", "val/c", "val/d"]):
        put(folder / f"images/{stem}.jpg", picture(n))
    classes = EMPTY.copy()
    classes[2:5, 3:7], classes[0] = 1, 255
    put(folder / "labels/train/a.png", classes)
    put(folder / "labels/train/b.png", filled((0, 4, 0, 4)))
    put(folder / "labels/val/c.png", filled((1, 3, 1, 9)))
    put(folder / "labels/val/d.png", EMPTY)
    return folder, None


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def example(texts: dict[str, bytes], floats: dict[str, float] | None = None) -> bytes:
    """A serialised `tf.train.Example`."""
    values = {name: field(1, field(1, text)) for name, text in texts.items()}
    for name, number in (floats or {}).items():
        values[name] = field(2, field(1, struct.pack("<f", number)))
    pairs = (field(1, field(1, n.encode()) + field(2, value)) for n, value in values.items())
    return field(1, b"".join(pairs))


def masked(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def tfrecord(*payloads: bytes) -> bytes:
    parts = [(struct.pack("<Q", len(payload)), payload) for payload in payloads]
    return b"".join(n + masked(n) + payload + masked(payload) for n, payload in parts)


def heat(seed: int) -> np.ndarray:
    """A soft map of another size than its image."""
    return picture(seed, 16, 16)[..., 0]


def richhf(folder: Path) -> Made:
    """The third record of train names an image that is not there."""

    def one(uid: str, seed: int) -> bytes:
        texts = {
            "filename": f"train/{uid}.png".encode(),
            "artifact_map": encoded(heat(seed)),
            "misalignment_map": encoded(heat(seed + 1)),
            "prompt_misalignment_label": b"1 0 1",
        }
        return example(texts, {"artifact_score": 0.75, "overall_score": 0.5})

    train = tfrecord(one("u-0", 20), one("u-1", 21), one("gone", 22))
    put(folder / "set/train.tfrecord", train)
    put(folder / "set/dev.tfrecord", tfrecord(one("u-2", 23)))
    for n in range(3):
        put(folder / f"pictures/part-{n}/u-{n}.png", picture(n))
    return folder / "set", folder / "pictures"


def synthscars(folder: Path) -> Made:
    square, corner = [2, 1, 5, 1, 5, 4, 2, 4], [8.0, 6.0, 10.0, 6.0, 10.0, 8.0, 8.0, 8.0]
    for split, spelt in (("train", "annotations"), ("test", "annoations")):
        for n in range(2):
            put(folder / split / f"images/{n}.jpg", picture(n))
        refs = [
            {"sentence": "a bent rail", "segmentation": [square]},
            {"sentence": "a hole", "segmentation": [corner]},
        ]
        records = [
            {"7": {"img_file_name": "0.jpg", "caption": "a bent rail and a hole", "refs": refs}},
            {"8": {"img_file_name": "1.jpg", "caption": "fine", "refs": []}},
        ]
        put(folder / split / spelt / f"{split}.json", records)
    return folder, None


def xaigd(folder: Path) -> Made:
    """Two row groups of two."""
    points = [[[2, 1], [5, 1], [5, 4], [2, 4]], [[8, 6], [10, 6], [10, 8], [8, 8]]]
    labels = [{"label": "low-level-edge", "points": p} for p in points]
    rows = [
        {
            "image": {"bytes": encoded(picture(n)), "path": f"{n}.png"},
            "generator": "flux",
            "uid": f"x-{n}",
            "labels": labels[:n],
        }
        for n in range(4)
    ]
    (folder / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "data/part-0.parquet", row_group_size=2)
    return folder, None


def hadm(folder: Path) -> Made:
    part = {"bbox": [7.0, 5.0, 3.0, 2.0], "body_parts": "hand", "level": "severe"}
    size = {"height": H, "width": W}
    scenes = {
        "a": {"annotation": [part], "human": []},
        "b": {
            "annotation": [],
            "human": [{"bbox": [-3, 6.5, 99, 8.2], "tag": ["human missing arm"]}],
        },
        "c": {"annotation": [], "human": [{"bbox": [0, 0, 4, 4], "tag": []}]},
        "clean": {"annotation": [], "human": []},
    }
    for n, (stem, scene) in enumerate(scenes.items()):
        put(folder / f"images/train/{stem}.jpg", picture(n))
        put(folder / f"annotations/train/{stem}.json", {"image": size, **scene})
    put(folder / "info.pkl", b"\x80\x04K\x01.")
    return folder, None


def imdl(folder: Path) -> Made:
    mask = EMPTY.copy()
    mask[0, :3] = 127, 128, 255
    put(folder / "Tp/a.png", picture(0))
    put(folder / "Gt/a.png", mask)
    put(folder / "Au/b.jpg", picture(1))
    pairs = [["Tp/a.png", "Gt/a.png"], [str(folder.resolve() / "Au/b.jpg"), "Negative"]]
    return put(folder / "list.json", pairs), None


RUNS = [11, 3, 7, 3, H * W - 24]
"""Down the columns: rows 1..3 of columns 1 and 2."""


def coco(folder: Path) -> Made:
    names = ["a.png", "b.png", "c.png", "d.png"]
    for n, name in enumerate(names):
        put(folder / "images" / name, picture(n))
    pictures = [{"id": n, "file_name": f, "height": H, "width": W} for n, f in enumerate(names)]
    polygon = [[2, 1, 5, 1, 5, 4, 2, 4]]
    shapes = [
        (0, polygon),
        (0, {"size": [H, W], "counts": RUNS}),
        (1, {"size": [H, W], "counts": packed(RUNS)}),
        (2, {"size": [H, W], "counts": RUNS}),
    ]
    annotations = [
        {"id": n, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": shape}
        for n, (image, shape) in enumerate(shapes)
    ]
    whole = {"images": pictures, "annotations": annotations, "categories": [{"id": 1}]}
    put(folder / "annotations/instances.json", whole)
    return folder, None


def packed(runs: list[int], h: int = H, w: int = W) -> str:
    """By COCO's own tool."""
    from pycocotools import mask

    return mask.frPyObjects({"size": [h, w], "counts": runs}, h, w)["counts"].decode()


def plain(folder: Path) -> Made:
    put(folder / "images/a.png", picture(0))
    put(folder / "images/b.jpg", picture(1))
    put(folder / "images/c.png", picture(2, 2 * H, 2 * W))
    put(folder / "masks/a.png", picture(3)[..., 0])
    put(folder / "masks/c.png", picture(4)[..., 0])
    put(folder / "real/r.jpg", picture(5))
    said = [
        {"file": "a.png", "prompt": "a hand", "category": "hands", "seed": 7, "source": "hard"},
        {"key": "b", "generator": "flux", "source": "human"},
    ]
    put(folder / "prompts.jsonl", "\n".join(map(json.dumps, said)).encode())
    return folder, None


def tarred(path: Path, **members: bytes | np.ndarray | dict) -> Path:
    """A tar of files by name, written as `{key}__{kind}`; in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            key, kind = name.split("__")
            if isinstance(content, np.ndarray):
                content = encoded(content, "PNG" if kind.endswith("png") else "JPEG")
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            header = tarfile.TarInfo(f"{key}.{kind.replace('_', '.')}")
            header.size = len(body)
            tar.addfile(header, io.BytesIO(body))
    return path


def webdataset(folder: Path) -> Made:
    """Two shards; what is said beside the images is what strangers say."""
    said = {"category": "hands", "seed": 7, "source": "https://example.org", "width": W}
    one = {"a__jpg": picture(0), "a__json": said, "a__mask_png": heat(3)[:H, :W]}
    tarred(folder / "train/0.tar", **one, a__txt=b"a hand")
    tarred(folder / "train/1.tar", b__cls=b"3", b__jpeg=picture(1), c__png=picture(2), c__json=REAL)
    return folder, None


def photographs(folder: Path) -> Made:
    put(folder / "b.png", picture(1))
    put(folder / "2024/a.jpg", picture(0))
    put(folder / ".thumbs/a.jpg", picture(2))
    return folder, None


SETS = {
    "pal4vst": pal4vst,
    "richhf": richhf,
    "synthscars": synthscars,
    "xaigd": xaigd,
    "hadm": hadm,
    "imdl": imdl,
    "coco": coco,
    "plain": plain,
    "webdataset": webdataset,
    "photographs": photographs,
}

TWO = filled((1, 5, 2, 6), (6, 9, 8, 11))
FIRST = filled((1, 5, 2, 6))
PATCH = filled((1, 4, 1, 3))
DOT = filled((0, 1, 1, 3))
APACHE = {**HUMAN, "licence": "Apache-2.0"}

EXPECTED: dict[str, list[tuple[str, int, np.ndarray | None, dict]]] = {
    "pal4vst": [
        ("train/a", 0, filled((2, 5, 3, 7)), HUMAN),
        ("train/b", 1, EMPTY, HUMAN),
        ("val/c", 2, filled((1, 3, 1, 9)), HUMAN),
        ("val/d", 3, EMPTY, HUMAN),
    ],
    "richhf": [
        ("dev:0", 2, heat(23), HUMAN),
        ("train:0", 0, heat(20), HUMAN),
        ("train:1", 1, heat(21), HUMAN),
    ],
    "synthscars": [
        (f"{split}/{key}", n, mask, {**APACHE, "caption": caption})
        for split in ("train", "test")
        for n, (key, mask, caption) in enumerate(
            [("7", TWO, "a bent rail and a hole"), ("8", EMPTY, "fine")]
        )
    ],
    "xaigd": [
        (f"data/part-0.parquet:{n}", n, mask, {**APACHE, "generator": "flux"})
        for n, mask in enumerate([EMPTY, FIRST, TWO, TWO])
    ],
    "hadm": [
        ("train/a", 0, filled((2, 5, 3, 7)), HUMAN),
        ("train/b", 1, filled((6, 9, 0, W)), HUMAN),
        ("train/c", 2, EMPTY, HUMAN),
        ("train/clean", 3, EMPTY, REAL),
    ],
    "imdl": [("Tp/a.png", 0, DOT, HUMAN), ("Au/b.jpg", 1, EMPTY, REAL)],
    "coco": [
        ("a.png", 0, np.maximum(FIRST, PATCH), HUMAN),
        ("b.png", 1, PATCH, HUMAN),
        ("c.png", 2, PATCH, HUMAN),
        ("d.png", 3, EMPTY, HUMAN),
    ],
    "plain": [
        (
            "images/a.png",
            0,
            picture(3)[..., 0],
            {"source": "hard", "prompt": "a hand", "category": "hands", "seed": 7},
        ),
        ("images/b.jpg", 1, None, {**PSEUDO, "generator": "flux"}),
        ("images/c.png", 2, picture(4)[..., 0], HUMAN),
        ("real/r.jpg", 5, EMPTY, REAL),
    ],
    "webdataset": [
        (
            "train/0:a",
            0,
            heat(3)[:H, :W],
            {"prompt": "a hand", "category": "hands", "seed": 7, "source": "human"},
        ),
        ("train/1:b", 1, None, PSEUDO),
        ("train/1:c", 2, EMPTY, REAL),
    ],
    "photographs": [("2024/a.jpg", 0, EMPTY, REAL), ("b.png", 1, EMPTY, REAL)],
}
"""Name, seed of the image, mask and what is said, in order; what is refused is left out."""
