"""Heat maps say where the artifact is and leave the rest of the picture alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.heatmap import CONTOUR, colour_bar, colourise, contour, overlay, read_map, write_map


def square(low=10, high=20, size=32):
    maps = torch.zeros(1, 1, size, size)
    maps[..., low:high, low:high] = 1
    return maps


def test_sound_pixels_are_unchanged_and_the_contour_is_drawn():
    images = torch.rand(1, 3, 32, 32)
    maps = square()
    shown = overlay(images, maps)
    sound = (maps == 0).expand_as(images)
    assert torch.equal(shown[sound], images[sound])
    assert torch.equal(shown[0, :, 10, 15], torch.tensor(CONTOUR))
    assert not torch.allclose(shown[0, :, 15, 15], images[0, :, 15, 15])
    assert 0 <= shown.min() and shown.max() <= 1


def test_the_contour_is_the_inner_edge():
    line = contour(square(), 0.5)[0, 0]
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[10:20, 10:20] = True
    expected[11:19, 11:19] = False
    assert torch.equal(line, expected)
    assert not contour(torch.ones(1, 1, 8, 8), 0.5).any()  # the image's border is no edge
    assert not contour(square() * 0.4, 0.5).any()


def test_colours_grow_brighter_with_the_value():
    bar = colourise(torch.linspace(0, 1, 101).view(1, 1, 1, 101))[0, :, 0]
    luminance = (torch.tensor([0.2126, 0.7152, 0.0722])[:, None] * bar).sum(0)
    assert (luminance.diff() > 0).all()


def test_colour_bar_has_the_surest_on_top():
    bar = colour_bar(100)
    assert bar.shape == (3, 100, 10) and bar[:, 0].sum() > bar[:, -1].sum()
    assert colour_bar(20).shape == (3, 20, 8)


def test_maps_round_trip_at_8_bit(tmp_path):
    levels = torch.arange(256.0).view(1, 16, 16) / 255
    write_map(tmp_path / "m.png", levels)
    assert torch.equal(read_map(tmp_path / "m.png"), levels)
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "L"
    write_map(tmp_path / "m.png", torch.tensor([[[-1.0, 2.0]]]))
    assert read_map(tmp_path / "m.png").tolist() == [[[0, 1]]]
    with pytest.raises(UserError, match=r"m.jpg would be a PNG"):
        write_map(tmp_path / "m.jpg", levels)
    assert not (tmp_path / "m.jpg").exists()


def test_masks_of_other_kinds_are_read(tmp_path):
    bits = np.array([[0, 1]], np.uint8)
    Image.fromarray(bits * 255).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(np.array([[0, 0xFF00]], np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(bits[..., None].repeat(3, 2) * 255).save(tmp_path / "rgb.png")
    for name in ("bits", "deep", "rgb"):
        assert read_map(tmp_path / f"{name}.png").tolist() == [[[0, 1]]]


def test_a_damaged_map_is_named(tmp_path):
    (tmp_path / "m.png").write_bytes(b"x")
    with pytest.raises(UserError, match="m.png"):
        read_map(tmp_path / "m.png")
