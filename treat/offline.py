"""Real images with captions in; their latents and encoded captions out, cached on disk.

A folder of images takes its captions from `metadata.jsonl` (`file_name`, and `text`, `caption` or
`prompt`), else from `<stem>.txt`; a folder of shards from its records (`caption`, else `prompt`);
Parquet files from a column of one of these names beside the column `image`.

Legend: b batch, h w pixels.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from core.contracts import DiffusionModel, Images
from core.errors import UserError
from core.image_files import SUFFIXES, list_images
from core.images import from_uint8, read_image
from core.parquet import ParquetRows, parquet_files
from core.shards import ShardStore
from treat.cache import CHUNK, RowCache, Rows, digest

LATENTS, SHAPES = "latents", "shapes"
ENCODED = 2**20
"""Pixels that the autoencoder is given at once; a single larger image goes alone."""
HELD = 32
CAPTION_FIELDS = ("text", "caption", "prompt")


@dataclass(frozen=True)
class RealImages:
    """Captions, and the picture of each by position; `name` tells one set from another."""

    captions: list[str]
    picture: Callable[[int], Images]
    name: str
    files: Sequence[Path] = ()
    """Whose contents decide what the pictures are: images, Parquet files, manifests of shards."""

    def __len__(self) -> int:
        return len(self.captions)

    def only(self, chosen: Sequence[int]) -> "RealImages":
        """Those of them, as a set of their own."""
        captions = [self.captions[i] for i in chosen]
        name = digest([self.name, *map(str, chosen)])
        return RealImages(captions, lambda i: self.picture(chosen[i]), name, self.files)


def read_offline(path: Path, limit: int | None = None, captioned: bool = True) -> RealImages:
    """Open a folder of images, of shards or of Parquet files, at most `limit` samples of it.

    Raises `UserError` for a missing folder, no images, or, where they must be `captioned`, an image
    without a caption.
    """
    images = _read(Path(path), limit, captioned)
    bare = [i for i, caption in enumerate(images.captions) if not caption.strip()]
    if captioned and bare:
        raise UserError(
            f"{path} has an empty caption, or none, at image {bare[0]} of {len(images)}, counted "
            "from 0: write one, or take the image out."
        )
    return images


def _read(path: Path, limit: int | None, captioned: bool) -> RealImages:
    if not path.exists():
        raise UserError(f"there is no folder {path} of images: name one that exists.")
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        raise UserError(f"{path} is one image: name a folder of images with captions.")
    if path.is_dir() and any(path.glob("*.manifest.jsonl")):
        return _shards(path, limit)
    if path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
        return _folder(path, limit, captioned)
    return _parquet(path, limit) if parquet_files(path) else _folder(path, limit, captioned)


def check_pictures(images: RealImages) -> None:
    """Decode each once; raises `UserError` for the first that is damaged."""
    for i in tqdm(range(len(images)), "check real images", disable=None):
        images.picture(i)


def _shards(path: Path, limit: int | None) -> RealImages:
    store = ShardStore(path)
    records = list(store.records())[:limit]
    captions = [record.caption or record.prompt for record in records]
    name = digest([str(path.resolve()), *(r.key for r in records), *captions])
    manifests = sorted(path.glob("*.manifest.jsonl"))
    return RealImages(captions, lambda i: from_uint8(store[i].image[None]), name, manifests)


def _parquet(path: Path, limit: int | None) -> RealImages:
    rows = ParquetRows(path, pictures=True)
    captions = rows.texts(CAPTION_FIELDS)[:limit]
    if "" in captions:
        raise UserError(f"{path} has no caption in row {captions.index('')}: write one.")
    name = digest([str(path.resolve()), *map(_stamp, rows.files), *captions])
    return RealImages(captions, lambda i: from_uint8(rows.picture(i)[None]), name, rows.files)


def _folder(path: Path, limit: int | None, captioned: bool) -> RealImages:
    files = list_images(path)[:limit]
    said = _metadata(path / "metadata.jsonl")
    captions = [said.get(file.name) or _sidecar(file, captioned) for file in files]
    name = digest([str(path.resolve()), *map(_stamp, files), *captions])
    return RealImages(captions, lambda i: read_image(files[i])[None], name, files)


def _stamp(file: Path) -> str:
    status = file.stat()
    return f"{file.name} {status.st_size} {status.st_mtime_ns}"


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
        said = {
            line["file_name"]: next(line[field] for field in CAPTION_FIELDS if field in line)
            for line in lines
        }
        if not all(isinstance(caption, str) for caption in said.values()):
            raise TypeError("a caption is no text")
        return said
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise UserError(
            f"{path} does not parse: write one object with file_name and text a line."
        ) from error


def _sidecar(file: Path, needed: bool) -> str:
    note = file.with_suffix(".txt")
    if not note.is_file() and not needed:
        return ""
    if not note.is_file():
        raise UserError(
            f"{file} has no caption: write it to {note.name}, or to metadata.jsonl beside it."
        )
    caption = note.read_text("utf-8").strip()
    if not caption and needed:
        raise UserError(f"{note} is empty: write the caption of {file.name} into it.")
    return caption


def cache_offline(
    folder: Path, model: DiffusionModel, base: str, images: RealImages, height: int, width: int
) -> RowCache:
    """`latents` and the conditioning of every image, computed once."""
    at_once = images_at_once(height, width)

    def compute(start: int, stop: int) -> dict[str, Tensor]:
        pictures = torch.cat([fit(images.picture(i), height, width) for i in range(start, stop)])
        text = dict(model.encode_prompts(images.captions[start:stop]))
        device = next(iter(text.values())).device
        latents = [model.encode(part.to(device)) for part in pictures.split(at_once)]
        return {LATENTS: torch.cat(latents), **text}

    name = digest([base, model.family, images.name, str(height), str(width)])
    return RowCache(folder / name, len(images)).fill(compute)


def by_size(
    folder: Path, images: RealImages, sizes: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], RealImages]:
    """The images by the size (height, width) whose shape is nearest to theirs, in order.

    A size to which none is near is left out. Every image is opened once for its shape.
    """
    if len(sizes) == 1:
        return {sizes[0]: images}

    def measure(start: int, stop: int) -> dict[str, Tensor]:
        shapes = [images.picture(i).shape[-2:] for i in range(start, stop)]
        return {SHAPES: torch.tensor(shapes)}

    shapes = RowCache(folder / digest([images.name, SHAPES]), len(images)).fill(measure)
    found: dict[tuple[int, int], list[int]] = {size: [] for size in sizes}
    for i, (height, width) in enumerate(shapes.rows(range(len(images)))[SHAPES].tolist()):
        near = min(sizes, key=lambda size: abs(math.log(size[0] * width / size[1] / height)))
        found[near].append(i)
    return {size: images.only(found[size]) for size in sizes if found[size]}


def images_at_once(height: int, width: int) -> int:
    """How many the autoencoder is given."""
    return min(CHUNK, max(1, ENCODED // (height * width)))


def cache_prompts(folder: Path, model: DiffusionModel, base: str, prompts: list[str]) -> RowCache:
    """The conditioning of every prompt, computed once."""
    name = digest([base, model.family, *prompts])
    cache = RowCache(folder / name, len(prompts))
    return cache.fill(lambda start, stop: dict(model.encode_prompts(prompts[start:stop])))


def fit(images: Images, height: int, width: int) -> Float[Tensor, "b 3 height width"]:
    """Shrink or enlarge (antialiased) to cover height x width, then cut the centre."""
    h, w = images.shape[-2:]
    if (h, w) == (height, width):
        return images
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    images = F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return images[..., top : top + height, left : left + width]


class RealRows:
    """Cached real images; the last tenth (at most `HELD`) may be held out for looking."""

    def __init__(
        self, cache: RowCache, captions: Sequence[str], device: torch.device, hold: bool = True
    ):
        self.cache, self.captions, self.device = cache, captions, device
        held = min(HELD, len(cache) // 10) if hold else 0
        self.train, self.held = range(len(cache) - held), range(len(cache) - held, len(cache))

    def rows(self, indices: Sequence[int]) -> Rows:
        """Latents and conditioning."""
        return self.cache.rows(indices, self.device)

    def said(self, indices: Sequence[int]) -> list[str]:
        return [self.captions[i] for i in indices]


def drawn_from(shapes: Sequence[RealRows], seed: int) -> RealRows:
    """One of them, each as likely as it has images to learn from."""
    place = seed % sum(len(rows.train) for rows in shapes)
    for rows in shapes:
        if place < len(rows.train):
            return rows
        place -= len(rows.train)
    raise AssertionError("unreachable")
