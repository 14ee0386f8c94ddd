"""Image files: exact round trips, and nothing but a tensor or a `UserError` from any bytes."""

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from core import image_files
from core.errors import UserError
from core.image_files import list_images
from core.images import (
    contact_sheet,
    from_uint8,
    read_image,
    read_images,
    round_to_8bit,
    to_uint8,
    write_image,
)


def picture(height=20, width=30, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def encoded(kind="PNG", mode="RGB", size=(30, 20), **options):
    """Bytes of a picture with red at its left and blue at its right."""
    plain = Image.new("RGB", size, "blue")
    plain.paste("red", (0, 0, size[0] // 2, size[1]))
    buffer = io.BytesIO()
    plain.convert(mode).save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_levels_are_exact_both_ways():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_uint8(from_uint8(levels)), levels)
    outside = torch.tensor([-0.5, 1.5, 0.5]).view(1, 3, 1, 1)
    assert to_uint8(outside).ravel().tolist() == [0, 255, 128]


def test_png_round_trip_is_rounding_to_8_bit(tmp_path):
    image = picture()
    write_image(tmp_path / "a.png", image)
    back = read_image(tmp_path / "a.png")
    assert torch.equal(back, round_to_8bit(image[None])[0]) and not torch.equal(back, image)
    for name in ("a.jpg", "a"):
        with pytest.raises(UserError, match=r"name that ends in \.png"):
            write_image(tmp_path / name, image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})],
)
def test_three_formats_by_content_not_by_name(tmp_path, kind, options):
    (tmp_path / "a.png").write_bytes(encoded(kind, **options))
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 20, 30) and image.dtype == torch.float32
    assert torch.allclose(image[:, 10, 3], torch.tensor([1.0, 0, 0]), atol=0.03)


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "I;16"])
def test_other_png_modes_become_rgb(tmp_path, mode):
    (tmp_path / "a.png").write_bytes(encoded(mode=mode))
    assert read_image(tmp_path / "a.png").shape == (3, 20, 30)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", "CMYK"))
    assert read_image(tmp_path / "a.jpg")[0, 10, 3] > 0.9


def test_16_bit_gray_keeps_its_high_byte(tmp_path):
    Image.fromarray(np.full((2, 2), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), torch.full((3, 2, 2), 128 / 255))


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (2, 2), (255, 0, 0, 51)).save(tmp_path / "faint.png")
    assert torch.equal(read_image(tmp_path / "clear.png"), torch.ones(3, 2, 2))
    faint = read_image(tmp_path / "faint.png")[:, 0, 0]
    assert torch.allclose(faint, torch.tensor([1, 0.8, 0.8]), atol=0.003)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise
    (tmp_path / "a").write_bytes(encoded(kind, exif=exif))
    image = read_image(tmp_path / "a")
    assert image.shape == (3, 30, 20)
    assert image[0, 3, 10] > 0.9 > 0.1 > image[0, 26, 10]  # red was left, now it is on top


def test_a_phones_two_view_jpeg_is_its_first_view(tmp_path):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_image(tmp_path / "a.jpg")[0].min() > 0.9


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bomb(width, height):
    """A PNG of a few bytes whose header claims width x height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def animated(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format=kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


HOSTILE = {
    "bomb": (bomb(60_000, 60_000), "pixels"),
    "large": (bomb(6_000, 5_000), "6000x5000"),
    "between": (bomb(10_000, 10_000), "pixels"),
    "animated PNG": (animated("PNG"), "animated"),
    "animated WebP": (animated("WEBP"), "animated"),
    "GIF": (encoded("GIF"), "none of PNG, JPEG, WEBP"),
    "TIFF": (encoded("TIFF"), "none of PNG, JPEG, WEBP"),
    "BMP": (encoded("BMP"), "none of"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of"),
    "zip": (b"PK\x03\x04" + bytes(60), "none of"),
    "empty": (b"", "none of"),
    "text bomb": (
        encoded()[:33]
        + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))
        + encoded()[33:],
        "damaged",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_files_are_refused_by_their_header(tmp_path, monkeypatch, name):
    content, said = HOSTILE[name]
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "good.png").write_bytes(encoded())

    def decode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with pytest.raises(UserError, match=said) as refusal:
        read_image(tmp_path / "a.png")
    assert "a.png" in str(refusal.value)
    with pytest.raises(AssertionError, match="decoded"):  # control: a sound file is decoded
        read_image(tmp_path / "good.png")


def test_a_file_of_too_many_bytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_BYTES", 1000)
    (tmp_path / "a.png").write_bytes(encoded() + bytes(2000))
    with pytest.raises(UserError, match="a.png is larger than 1000 bytes"):
        read_image(tmp_path / "a.png")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.png"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="cannot read"):
        read_image(tmp_path)


SEEDS = [
    encoded(),
    encoded(mode="P"),
    encoded(mode="RGBA"),
    encoded("JPEG", exif=Image.Exif()),
    encoded("JPEG", progressive=True),
    encoded("WEBP"),
    encoded("WEBP", lossless=True),
    animated("WEBP"),
]


def mutated(draw: random.Random) -> bytes:
    content = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(content))
        match draw.randrange(4):
            case 0:
                content[place] = draw.randrange(256)
            case 1:
                del content[place : place + draw.randint(1, 40)]
                content += b"\0" if not content else b""
            case 2:
                content[place:place] = draw.randbytes(draw.randint(1, 40))
            case 3:
                other = draw.choice(SEEDS)
                content[place : place + 30] = other[place : place + 30] or b"\0"
    return bytes(content)


@pytest.mark.parametrize("trials", [300, pytest.param(20_000, marks=pytest.mark.trial)])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_used_or_refused_with_a_reason(tmp_path, trials):
    seed = int.from_bytes(os.urandom(3))
    used = refused = 0
    path = tmp_path / "a.png"
    for trial in range(trials):
        path.write_bytes(mutated(random.Random(seed * 1_000_000 + trial)))
        try:
            image = read_image(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, trial {trial}: {error!r}") from error
        else:
            assert 0 <= image.min() and image.max() <= 1
            used += 1
    assert refused > 0


MEASURE = """
import re, sys
from pathlib import Path
from core.errors import UserError
from core.images import read_image
def peak():  # KiB; of this program alone, where getrusage also counts the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_image(path)
    except UserError:
        pass
print((peak() - before) // 1024)
"""


def test_memory_stays_under_512_megabytes(tmp_path):
    for name, (content, _) in HOSTILE.items():
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (6000, 4000)).save(tmp_path / "largest.png", compress_level=1)
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 250 < int(done.stdout) < 512  # MiB; the lower bound shows that it measures


def test_listing(tmp_path):
    for name in ("b.JPG", "a.png", ".c.png", "notes.txt", "d.webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "d.webp"]
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(UserError, match="no image in .*; put files ending in"):
        list_images(tmp_path / "folder.png")
    (tmp_path / "folder.png/below").mkdir()
    (tmp_path / "folder.png/below/e.png").write_bytes(b"")
    with pytest.raises(UserError, match="name one of its folders, .* data import photographs"):
        list_images(tmp_path / "folder.png")
    with pytest.raises(UserError, match="does not exist"):
        list_images(Path("nowhere"))


def test_a_batch_has_one_size(tmp_path):
    for name, width in [("a.png", 30), ("b.png", 30), ("c.png", 31)]:
        write_image(tmp_path / name, picture(width=width))
    assert read_images(list_images(tmp_path)[:2]).shape == (2, 3, 20, 30)
    with pytest.raises(UserError, match="c.png is 31x20 but .*a.png is 30x20"):
        read_images(list_images(tmp_path))
    with pytest.raises(UserError):
        read_images([])


def test_contact_sheet_holds_every_picture_unchanged():
    rows = [[picture(seed=0), picture(10, 12, seed=1)], [picture(seed=2)]]
    sheet = contact_sheet(rows, labels=["first", "second"], columns=["a", "b"], gap=4)
    top, left = 14 + 4 + 14, 4
    first = round_to_8bit(rows[0][0][None])[0]
    small = round_to_8bit(rows[0][1][None])[0]
    third = round_to_8bit(rows[1][0][None])[0]
    assert torch.equal(sheet[:, top : top + 20, left : left + 30], first)
    assert torch.equal(sheet[:, top : top + 10, left + 34 : left + 46], small)
    below = top + 20 + 4 + 14
    assert torch.equal(sheet[:, below : below + 20, left : left + 30], third)
    assert sheet[:, :14].min() < 0.5  # the column names are written
    assert contact_sheet(rows).shape == (3, 4 + 2 * 24, 4 + 2 * 34)
    with pytest.raises(UserError):
        contact_sheet([])
