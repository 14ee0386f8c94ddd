"""The comparison of folders: what moves its figures, that they name their network, refusals."""

import json

import pytest
import torch
from torch.nn import functional as F

from core.errors import UserError
from core.images import read_images, write_image
from detector.features import Description, SmallFeatures, save_features
from treat import compare

NAME = "toy features"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two halves of one kind of images, and the second half under growing damage."""
    folder = tmp_path_factory.mktemp("world")
    shape = Description(name=NAME, channels=(8, 8, 6), side=16)
    save_features(SmallFeatures(shape, seed=1), shape, folder / "features")
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(120, 3, 8, 8, generator=g)
    images = F.interpolate(coarse, scale_factor=2) * 0.8 + 0.1 * torch.rand(
        120, 3, 16, 16, generator=g
    )
    noise, blurred = torch.randn(60, 3, 16, 16, generator=g), images[60:]
    sets = {"real": images[:60], "drawn": images[60:]}
    for strength in (1, 2, 3):
        blurred = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, 1)
        sets[f"noise{strength}"] = images[60:] + 0.3 * strength * noise
        sets[f"blur{strength}"] = blurred
    for name, pictures in sets.items():
        (folder / name).mkdir()
        for i, picture in enumerate(pictures):
            write_image(folder / name / f"{i:03d}.png", picture)
    return folder


def compared(world, tmp_path, *names, **changes):
    out = tmp_path / "figures.json"
    given = {"features": str(world / "features"), "resamples": 20, "device": "cpu"}
    given |= {"real": world / "real", "generated": tuple(world / n for n in names)}
    compare.main(compare.Config.model_validate({**given, "json_file": out, **changes}))
    found = json.loads(out.read_text())
    return found, [found["sets"][str(world / name)] for name in names]


@pytest.mark.parametrize("damage, lost", [("noise", "precision"), ("blur", "recall")])
def test_figures_tell_of_growing_damage(world, tmp_path, damage, lost):
    names = ["drawn", *(f"{damage}{strength}" for strength in (1, 2, 3))]
    _, rows = compared(world, tmp_path, *names)
    fids, shares = ([row[figure] for row in rows] for figure in ("fid", lost))
    assert fids == sorted(fids) and fids[-1] > 3 * fids[0]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.75 > 0.5 > shares[-1]


def test_a_set_with_itself_and_the_name_of_its_network(world, tmp_path, capsys):
    found, (row,) = compared(world, tmp_path, "real")
    assert row["fid"] == pytest.approx(0, abs=1e-3) and row["precision"] == row["recall"] == 1
    assert row["coverage"] == 1
    assert found["features"]["name"] == NAME and row["images"] == found["real"]["images"] == 60
    said = capsys.readouterr().out
    assert f"FID ({NAME})" in said and said.count("FID") == 1


def test_intervals_hold_their_figure_and_can_be_left_out(world, tmp_path):
    _, (row,) = compared(world, tmp_path, "noise1")
    for name in ("fid", "precision", "recall", "coverage"):
        low, high = row["interval"][name]
        assert low < row[name] < high
    _, (bare,) = compared(world, tmp_path, "noise1", resamples=0)
    assert bare["interval"]["fid"] is None and bare["fid"] == row["fid"]


def test_images_of_several_sizes_and_a_limit(world, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i, picture in enumerate(read_images(sorted((world / "drawn").iterdir()))):
        write_image(mixed / f"{i:03d}.png", picture[:, : 16 - i % 2])
    found, _ = compared(world, tmp_path, generated=(mixed,))
    assert found["sets"][str(mixed)]["images"] == 60
    found, _ = compared(world, tmp_path, generated=(mixed,), limit=6)
    assert found["sets"][str(mixed)]["images"] == found["real"]["images"] == 6
    assert "6 images and 6 features" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "vectors_of", None)  # before anything is looked at
    for changes, says in (
        ({"features": str(world / "real")}, "name a folder with features.json"),
        ({"real": world / "nowhere"}, "there is no folder"),
        ({"limit": 3}, "at least 4 in a set"),
        ({"limit": 5}, "at least 6 in a set"),
    ):
        with pytest.raises(UserError, match=says):
            compared(world, tmp_path, "drawn", **changes)
