"""A mix of aspect ratios: each update draws one size, real images learn in the nearest."""

from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from core.config import read_yaml
from core.errors import UserError
from core.images import write_image
from tests.tiny import SIZE
from tests.treat.setting import build, config, digest, losses
from tests.treat.test_resume import stop_at
from treat import train
from treat.cache import RowCache
from treat.offline import RealImages, RealRows, by_size, drawn_from

TALL, WIDE = (2 * SIZE, SIZE), (SIZE, 2 * SIZE)
SIZES = {"sizes": ("x".join(map(str, TALL)), "x".join(map(str, WIDE)))}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Among the real images are five wide ones, and none is tall."""
    folder = build(tmp_path_factory.mktemp("world"))
    for i in range(5):
        write_image(folder / f"real/wide-{i}.png", torch.rand(3, 20, 37))
        (folder / f"real/wide-{i}.txt").write_text("a wide one")
    return folder


def test_real_images_by_the_nearest_shape(tmp_path):
    shapes = [(8, 8), (8, 17), (8, 11), (9, 40), (8, 12)]
    opened = []

    def picture(i):
        opened.append(i)
        return torch.full((1, 3, *shapes[i]), i / 10)

    images = RealImages([f"caption {i}" for i in range(5)], picture, "a set")
    found = by_size(tmp_path, images, [(8, 8), TALL, WIDE])
    assert list(found) == [(8, 8), WIDE]  # 8 : 12 is nearer to 1 : 2 than to 1 : 1
    assert found[WIDE].captions == ["caption 1", "caption 3", "caption 4"]
    assert found[WIDE].picture(2).max() == pytest.approx(0.4)
    assert len({images.name, *(near.name for near in found.values())}) == 3
    opened.clear()
    by_size(tmp_path, images, [(8, 8), TALL, WIDE])
    assert not opened  # their shapes were kept
    assert by_size(tmp_path, images, [(8, 8)]) == {(8, 8): images}


def test_as_likely_as_it_has_images(tmp_path):
    few, many = (RealRows(RowCache(tmp_path, n), ["a"] * n, torch.device("cpu")) for n in (2, 6))
    drawn = Counter(len(drawn_from([many, few], seed).train) for seed in range(80))
    assert drawn == {2: 20, 6: 60}


def test_a_drawing_that_was_not_told_is_the_bases_and_noted(world, tmp_path):
    own = {"height": SIZE, "width": SIZE, "sampling_steps": 4}
    unsaid = config(world, tmp_path, steps=1, **dict.fromkeys(own))
    assert train.main(unsaid) == 0
    noted = read_yaml(tmp_path / "config.yaml")
    assert {name: noted[name] for name in own} == own
    said = unsaid.model_copy(update={**own, "steps": 2})
    assert train.main(said) == 0  # the same run
    with pytest.raises(UserError, match="height differ"):
        train.main(said.model_copy(update={"height": 2 * SIZE}))


def test_every_size_is_drawn_learnt_in_and_resumed(world, tmp_path, monkeypatch):
    drawn, real = [], []
    drawings, offline_term = train.drawings, train.offline_term

    def spied(chain, noise, *rest):
        drawn.append((chain.schedule.height, chain.schedule.width))
        return drawings(chain, noise, *rest)

    def spied_offline(model, rows, *rest):
        real.append(tuple(rows["latents"].shape[-2:]))
        return offline_term(model, rows, *rest)

    monkeypatch.setattr(train, "drawings", spied)
    monkeypatch.setattr(train, "offline_term", spied_offline)
    whole = config(world, tmp_path / "whole", steps=8, seed=1, **SIZES)
    assert train.main(whole) == 0
    assert set(drawn) == {(SIZE, SIZE), TALL, WIDE} and len(set(real)) == 2
    first, drawn[:] = list(drawn), []
    stopped = config(world, tmp_path / "stopped", steps=8, seed=1, **SIZES)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        train.main(stopped)
    assert train.main(stopped) == 0
    assert drawn == first
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    assert digest(tmp_path / "whole", 8) == digest(tmp_path / "stopped", 8)


def test_sizes_that_cannot_be_drawn_are_refused_first(world, tmp_path):
    for odd in ("16by16", "0x16", "16", "16x16x16"):
        with pytest.raises(ValidationError, match="sizes"):
            config(world, tmp_path / "run", sizes=(odd,))
    with pytest.raises(UserError, match="17"):
        train.main(config(world, tmp_path / "run", sizes=(f"17x{SIZE}",)))
    assert not (tmp_path / "run").exists()
