"""RePaint: the walk, blending, what is known, seeds; the program and its refusals."""

import json
import shutil
from itertools import pairwise
from typing import Any

import pytest
import torch

from base_models import unconditional
from base_models.trajectory import Level, joined, levels, noisier, stochastic
from core.errors import UserError
from core.heatmap import write_map
from core.images import read_images, round_to_8bit, write_image
from core.run import PAUSED, Run
from core.seeds import mix
from tests.base_models.families import CASES, UNCONDITIONAL
from tests.tiny import SIZE
from tests.tiny.unconditional import tiny_ddpm, tiny_ldm
from treat import inpaint
from treat.repaint import KNOWN, REPAINT, repaint, walk
from treat.step import Chain

SEEDS = [4, 7]


def test_the_walk_is_the_papers():
    assert walk(4, 10, 1) == [0, 1, 2, 3, 4]
    assert walk(5, 2, 2) == [0, 1, 2, 0, 1, 2, 3, 4, 2, 3, 4, 5]
    path = walk(250, 10, 10)
    jumps = [a for a, b in pairwise(path) if b < a]
    assert {a - b for a, b in pairwise(path)} == {-1, 10}
    assert {jumps.count(at) for at in jumps} == {9} and len(set(jumps)) == 24
    assert min(jumps) == 19 and max(jumps) == 249 and path[-1] == 250
    with pytest.raises(UserError, match="--jump-length"):
        walk(10, 10, 2)


def test_a_step_with_noise_has_the_law_of_its_level():
    before, after = Level(0.6, 0.8), Level(0.8, 0.6)
    clean = torch.zeros(1, 3, 200, 200)
    g = torch.Generator().manual_seed(0)
    eps, fresh = (torch.randn(clean.shape, generator=g) for _ in range(2))
    for eta in (0.0, 0.5, 1.0):
        assert stochastic(clean, eps, before, after, eta, fresh).std() == pytest.approx(0.6, 0.02)
    plain = stochastic(clean, eps, before, after, 0.0, fresh)
    torch.testing.assert_close(plain, joined(clean, eps, after))
    assert noisier(plain, after, before, fresh).std() == pytest.approx(0.8, rel=0.02)


def chain(model: Any, steps=6, count=2) -> Chain:
    return Chain(model, model.schedule(steps, SIZE, SIZE), model.encode_prompts([""] * count))


def setting(model: Any, count=2):
    g = torch.Generator().manual_seed(1)
    known = model.encode(torch.rand(count, 3, SIZE, SIZE, generator=g))
    drawn = torch.zeros(count, 1, *known.shape[-2:], dtype=torch.bool)
    drawn[..., : known.shape[-1] // 2] = True
    return known, drawn


@pytest.mark.parametrize("make", ["ddpm", "ldm"])
def test_without_resampling_it_only_blends(make):
    model: Any = (
        unconditional.pixels(tiny_ddpm()) if make == "ddpm" else unconditional.latents(tiny_ldm())
    )
    known, drawn = setting(model)
    one = chain(model)
    found = repaint(one, known, drawn, SEEDS, walk(6, 2, 1), eta=0)
    latents, law = model.noise(SEEDS, SIZE, SIZE), levels(model, one.schedule)
    with torch.no_grad():
        for i in range(6):
            seeds = [mix(seed, REPAINT, i, KNOWN) % 2**32 for seed in SEEDS]
            put = joined(known, model.noise(seeds, SIZE, SIZE), law[i + 1])
            latents = torch.where(drawn, model.step(latents, i, one.schedule, {}), put)
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=1e-4)
    resampled = repaint(one, known, drawn, SEEDS, walk(6, 2, 3), eta=0)
    assert not torch.allclose(resampled, latents, atol=1e-2)  # control


def test_an_image_is_a_function_of_its_seed_and_what_is_known_of_it():
    model: Any = unconditional.pixels(tiny_ddpm())
    known, drawn = setting(model)
    path = walk(6, 2, 2)
    both = repaint(chain(model), known, drawn, SEEDS, path)
    alone = repaint(chain(model, count=1), known[1:], drawn[1:], SEEDS[1:], path)
    torch.testing.assert_close(both[1:], alone, atol=2e-3, rtol=1e-2)  # rounding, ten passes on
    assert torch.equal(both, repaint(chain(model), known, drawn, SEEDS, path))
    other = repaint(chain(model), known, drawn, [5, 8], path)
    hidden = drawn.expand_as(known)
    assert torch.equal(both[~hidden], known[~hidden])
    assert (both - other)[hidden].abs().mean() > 0.01
    moved = known + (~drawn) * 0.5
    assert not torch.equal(repaint(chain(model), moved, drawn, SEEDS, path)[hidden], both[hidden])


@pytest.mark.parametrize("base", ["ldm", "ldm, AutoencoderKL"])
def test_nothing_of_what_is_hidden_is_seen(base):
    one = chain(UNCONDITIONAL[base].model())
    g = torch.Generator().manual_seed(2)
    images, others = torch.rand(2, 2, 3, SIZE, SIZE, generator=g)
    masks = torch.zeros(2, 1, SIZE, SIZE)
    masks[0, :, 4:11, 3:9], masks[1] = 1, 1  # a part, and all
    path = walk(6, 2, 2)
    found = inpaint.fill(one, images, masks, SEEDS, path, 1.0)
    exchanged = torch.where(masks > 0, others, images)
    assert torch.equal(inpaint.fill(one, exchanged, masks, SEEDS, path, 1.0) * masks, found * masks)
    seen = torch.where(masks > 0, images, others)  # the control: what is known does matter
    assert not torch.equal(inpaint.fill(one, seen, masks, SEEDS, path, 1.0)[0] * masks[0],
                           found[0] * masks[0])  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (7, 3), (1, 2)])
def test_a_hole_is_filled_by_what_lies_around_it(height, width):
    g = torch.Generator().manual_seed(3)
    images = torch.rand(3, 3, height, width, generator=g)
    known = (torch.rand(3, 1, height, width, generator=g) > 0.5).float()
    known[1], known[2] = 0, 1
    found = inpaint.surrounded(images, known)
    assert torch.equal(found * known, images * known)
    torch.testing.assert_close(found[1], torch.full_like(found[1], inpaint.GRAY))
    assert torch.equal(found[2], images[2])
    flat = inpaint.surrounded(torch.where(known > 0, 0.25, images), known)
    torch.testing.assert_close(flat[0], torch.full_like(flat[0], 0.25))


@pytest.fixture
def world(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(3):
        g = torch.Generator().manual_seed(i)
        write_image(tmp_path / f"images/{i}.png", torch.rand(3, SIZE, SIZE, generator=g))
        mask = torch.zeros(1, SIZE, SIZE)
        mask[:, 3 : 13 + i, 5:15] = 1
        write_map(tmp_path / f"masks/{i}.png", mask)
    tiny_ddpm(sample_size=SIZE).save_pretrained(tmp_path / "ddpm")
    tiny_ldm(vq=False).save_pretrained(tmp_path / "ldm")
    return tmp_path


def settings(world, name: str = "run", **changes: Any):
    given: dict[str, Any] = {"images": world / "images", "masks": world / "masks", "batch": 2}
    few = {"sampling_steps": 6, "jump_length": 2, "resamples": 2, "shown": 2}
    own = {"base": str(world / "ddpm"), "out": world / name}
    return inpaint.Config(**{**given, **few, **own, **changes})


def results(world, name="run"):
    return read_images(sorted((world / name / "images").iterdir()))


@pytest.mark.parametrize("base", ["ddpm", "ldm"])
def test_what_is_known_comes_out_to_the_bit(world, base):
    assert inpaint.main(settings(world, base=str(world / base))) is None
    before, after = read_images(sorted((world / "images").iterdir())), results(world)
    holes = inpaint.read(sorted((world / "masks").iterdir())).bool().expand_as(before)
    assert torch.equal(after[~holes], before[~holes])
    assert (after - before)[holes].abs().mean() > 0.05
    assert torch.equal(after, round_to_8bit(after))
    summary = json.loads((world / "run/summary.json").read_text())
    assert summary["n"] == 3 and summary["steps_an_image"] == 6 + 2 * 2
    assert (world / "run/sheet.png").stat().st_size > 1000


def test_a_stopped_run_goes_on_to_the_same_images(world, monkeypatch):
    inpaint.main(settings(world, "whole"))
    looks = iter([False, True])
    monkeypatch.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
    assert inpaint.main(settings(world, "parts")) == PAUSED
    assert len(list((world / "parts/images").iterdir())) == 2
    monkeypatch.setattr(Run, "interrupted", property(lambda run: False))
    assert inpaint.main(settings(world, "parts")) is None
    assert torch.equal(results(world, "parts"), results(world, "whole"))


def test_another_mask_of_the_same_name_is_refused(world, monkeypatch):
    monkeypatch.setattr(Run, "interrupted", property(lambda run: True))
    assert inpaint.main(settings(world)) == PAUSED
    full, former = torch.ones(1, SIZE, SIZE), (world / "masks/2.png").read_bytes()
    write_map(world / "masks/2.png", full)
    looks = iter([False, True])  # nothing was drawn, so nothing binds
    monkeypatch.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
    assert inpaint.main(settings(world)) == PAUSED
    (world / "masks/2.png").write_bytes(former)
    monkeypatch.setattr(Run, "interrupted", property(lambda run: False))
    with pytest.raises(UserError, match="other contents of --masks than lie there now"):
        inpaint.main(settings(world))
    write_map(world / "masks/2.png", full)
    assert inpaint.main(settings(world)) is None  # control


def test_what_cannot_be_done_is_refused_before_anything_is_drawn(world):
    (world / "few").mkdir()
    write_map(world / "few/0.png", torch.ones(1, SIZE, SIZE))
    write_map(world / "wide.png", torch.ones(1, SIZE, SIZE + 2))
    shutil.copytree(world / "masks", world / "many")
    shutil.copy(world / "many/1.png", world / "many/1.webp")
    CASES["sdxl"].pipeline().save_pretrained(world / "text")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"masks": world / "few"}, "no mask for 1.png"),
        ({"masks": world / "many"}, "several masks for 1.png"),
        ({"masks": world / "wide.png"}, "bring images and masks to one size"),
        ({"jump_length": 6}, "--jump-length"),
        ({"base": str(world / "text")}, "draws what it is asked for"),
        ({"images": world / "none"}, "does not exist"),
    )
    for given, says in cases:
        with pytest.raises(UserError, match=says):
            inpaint.main(settings(world, **given))
    assert not (world / "run").exists()
