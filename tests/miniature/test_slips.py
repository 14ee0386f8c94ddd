"""Labels with slips: as many as asked for, the same ones again, and nothing else touched."""

from pathlib import Path

import pytest
import torch
from scipy.stats import binom

from core.heatmap import read_map
from core.seeds import generator
from data_balancing.annotator_command import write_task
from miniature import label
from miniature.blobs import blob_labels
from miniature.faults import plant
from miniature.law import prompts
from miniature.slips import slipped

N = 400


@pytest.fixture(scope="module")
def marked() -> tuple[torch.Tensor, torch.Tensor]:
    """Images that all differ, each with two soft regions and a good deal of sound ground."""
    images = torch.rand(N, 3, 64, 64, generator=generator(5))
    maps = torch.zeros(N, 1, 64, 64)
    maps[:, :, 7:14, 7:14], maps[:, :, 8:13, 8:13] = 0.3, 0.9
    maps[:, :, 40:43, 40:50] = 0.8
    return images, maps


def regions(maps: torch.Tensor) -> int:
    return sum(len(one[one > 0].unique()) for one in blob_labels(maps[:, 0] > 0.5))


def likely(count: int, n: int, p: float) -> bool:
    low, high = binom.interval(0.9999, n, p)
    return low <= count <= high


@pytest.mark.parametrize("missed", [0.1, 0.5])
def test_so_many_regions_are_missed_and_the_others_keep_every_value(marked, missed: float):
    images, maps = marked
    found = slipped(images, maps, missed, 0.0, 3)
    assert likely(2 * N - regions(found), 2 * N, missed)
    assert not likely(2 * N - regions(found), 2 * N, missed + 0.2)  # the bound can fail
    first, second = maps[:, :, :20], maps[:, :, 20:]
    for part, whole in ((found[:, :, :20], first), (found[:, :, 20:], second)):
        kept = (part == whole).flatten(1).all(1)
        assert torch.equal(part[~kept], torch.zeros_like(part[~kept]))  # with its soft rim
        assert 0 < kept.sum() < N


@pytest.mark.parametrize("invented", [0.1, 0.5])
def test_in_so_many_images_one_sound_spot_is_painted(marked, invented: float):
    images, maps = marked
    found = slipped(images, maps, 0.0, invented, 3)
    new = [regions(found[i : i + 1]) - 2 for i in range(N)]
    assert set(new) == {0, 1} and likely(sum(new), N, invented)
    assert not likely(sum(new), N, invented + 0.2)
    assert torch.equal(found[maps > 0], maps[maps > 0])
    centres = {tuple((one > 0.95).nonzero()[0].tolist()) for one in found if (one > 0.95).any()}
    assert len(centres) > sum(new) / 2  # not always the same place


def test_without_slips_nothing_changes_and_with_all_nothing_remains(marked):
    images, maps = marked
    assert torch.equal(slipped(images, maps, 0.0, 0.0, 3), maps)
    assert not slipped(images, maps, 1.0, 0.0, 3).any()


def test_slips_follow_from_image_and_seed_alone(marked):
    images, maps = marked
    whole = slipped(images, maps, 0.4, 0.4, 3)
    turned = slipped(images[10:20].flip(0), maps[10:20].flip(0), 0.4, 0.4, 3).flip(0)
    assert torch.equal(turned, whole[10:20])
    assert not torch.equal(slipped(images, maps, 0.4, 0.4, 4), whole)  # the control


def test_a_full_label_leaves_no_room(marked):
    images = marked[0][:4]
    full = torch.ones(4, 1, 64, 64)
    assert torch.equal(slipped(images, full, 0.0, 1.0, 0), full)


def test_the_program_slips(tmp_path: Path):
    scenes, images, _ = plant("grey-out", 3, generator(1))
    said = prompts(scenes)
    for name in ("plain", "missed", "both"):
        write_task(tmp_path / name, images, said)
    label.main(label.Config(folder=tmp_path / "plain"))
    label.main(label.Config(folder=tmp_path / "missed", missed=1.0))
    label.main(label.Config(folder=tmp_path / "both", missed=1.0, invented=1.0))
    plain, missed, both = (
        torch.stack([read_map(path) for path in sorted((tmp_path / name / "masks").iterdir())])
        for name in ("plain", "missed", "both")
    )
    assert regions(plain) >= 3 and not missed.any() and regions(both) == 3
