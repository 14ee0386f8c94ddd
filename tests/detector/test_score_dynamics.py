"""ASCED's map: its formulas written out by hand, planted anomalies, and what its release does."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from base_models.trajectory import Level, Trajectory, joined, levels, noise_in, weighted_scores
from core.contracts import Detector
from core.errors import UserError
from detector import score_dynamics
from detector.regions import eroded, of_size, of_width, region_numbers
from detector.score_dynamics import ScoreDynamics, Window, code_map, dynamics, paper_map
from tests.base_models.families import EVERY
from tests.tiny import SIZE

PREDICTS = ("ddpm", "ddpm, v", "ldm", "sdxl", "sdxl, v", "sd3", "sd3, dynamic shift")
"""Epsilon, v and, of flow matching, SD 3 (FLUX packs what it says into tokens)."""
STEPS = 10


def taken(model, steps=STEPS, seeds=(1, 2)) -> Trajectory:
    """A whole sampling, written down."""
    text = model.encode_prompts(["a hand"] * len(seeds))
    schedule = model.schedule(steps, SIZE, SIZE)
    written, latents = Trajectory(levels(model, schedule)), model.noise(seeds, SIZE, SIZE)
    with torch.no_grad():
        for i in range(steps):
            after, clean = model.move(latents, i, schedule, text)
            written.add(latents, clean)
            latents = after
    return written


@pytest.mark.parametrize("name", PREDICTS)
def test_the_weighted_score_is_the_papers_whatever_the_model_predicts(name):
    """w s by the paper's own formula, from what the network itself says."""
    model = EVERY[name].model()
    model.guidance = 0.0
    said = []
    model.network.register_forward_hook(lambda _, given, out: said.append((given[0], out[0])))
    written = taken(model)
    for i, found in enumerate(weighted_scores(written)):
        x, prediction = said[i]
        sigma = written.levels[i].ratio
        if sigma == float("inf"):
            assert found.isnan().all() and i == 0 and model.family == "sd3"
            continue
        if model.family == "sd3":
            share = written.levels[i].noise
            eps = x + (1 - share) * prediction  # v = eps - x0, x = (1 - share) x0 + share eps
            expected = -share / (1 - share) * eps
        else:
            abar = 1 / (1 + sigma**2)
            x = x[:, :4]
            eps = prediction[:, : x.shape[1]]
            if name.endswith("v"):
                eps = abar**0.5 * eps + (1 - abar) ** 0.5 * x
            score = -eps / (1 - abar) ** 0.5
            expected = (1 - abar) / abar**0.5 * score
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * max(1.0, sigma))
    assert len(said) == STEPS


@pytest.mark.parametrize("name", ["ddpm", "ldm", "sdxl", "flux"])
def test_levels_take_latents_apart_and_put_them_together(name):
    model = EVERY[name].model()
    schedule = model.schedule(STEPS, SIZE, SIZE)
    clean, noise = (model.noise(seeds, SIZE, SIZE) for seeds in ([1, 2], [3, 4]))
    for i, level in enumerate(levels(model, schedule)):
        together = model.noised(clean, i, schedule, noise)
        torch.testing.assert_close(joined(clean, noise, level), together, rtol=1e-5, atol=1e-4)
        if level.noise:
            torch.testing.assert_close(
                noise_in(together, clean, level), noise, rtol=1e-2, atol=1e-2
            )


def planted(at: int, height=32, jump=2.0) -> Trajectory:
    """x0-hat drifts a little everywhere, and jumps within a square at step `at`; 20 steps."""
    g = torch.Generator().manual_seed(0)
    model = EVERY["ddpm"].model()
    written = Trajectory(levels(model, model.schedule(20, SIZE, SIZE)))
    clean = torch.zeros(1, 3, height, height)
    eps = torch.randn(clean.shape, generator=g)
    for i in range(20):
        clean = clean + 0.02 * torch.randn(clean.shape, generator=g)
        if i == at:
            clean = clean.clone()
            clean[..., 8:16, 4:12] += jump
        written.add(joined(clean, eps, written.levels[i]), clean)
    return written


SQUARE = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
SQUARE[..., 8:16, 4:12] = True


@pytest.mark.parametrize("at, seen", [(5, True), (9, True), (10, False), (0, False)])
def test_a_jump_within_the_window_is_seen_where_it_is(at, seen):
    window = Window(t_c=0.5)
    assert list(window.read(20)) == list(range(1, 10)) and window.correction(20) == 10
    images = torch.rand(1, 3, 32, 32)
    steady = planted(at)
    map = ScoreDynamics(steady, lambda z: z, "x0", window, factor=4.0)(images)
    assert ((map > 0.5) == SQUARE).all() == seen
    assert (map[~SQUARE] < 0.5).all()
    detector = ScoreDynamics(steady, lambda z: z, "code", window)
    found = detector(images)
    assert (found[SQUARE] >= 0.5).all() == seen


def test_the_map_is_an_artifact_map_of_the_images_it_is_shown():
    model = EVERY["sdxl"].model()
    written = taken(model)
    for variant in ("paper", "code"):
        detector = ScoreDynamics(written, model.decode, variant)
        assert isinstance(detector, Detector) and not detector.differentiable
        map = detector(torch.rand(2, 3, SIZE, SIZE))
        assert map.shape == (2, 1, SIZE, SIZE) and map.dtype == torch.float32
        assert map.min() >= 0 and map.max() <= 1 and map.isfinite().all()
    with pytest.raises(ValueError, match="a trajectory of 2"):
        detector(torch.rand(3, 3, SIZE, SIZE))


def test_one_images_map_is_its_own_whatever_the_batch():
    model = EVERY["ddpm"].model()
    together, alone = taken(model, seeds=(1, 2)), taken(model, seeds=(2,))
    for variant in ("paper", "code"):
        both = ScoreDynamics(together, model.decode, variant)(torch.rand(2, 3, SIZE, SIZE))
        one = ScoreDynamics(alone, model.decode, variant)(torch.rand(1, 3, SIZE, SIZE))
        torch.testing.assert_close(both[1:], one, atol=1e-3, rtol=1e-3)
        assert (both[:1] - one).abs().max() > 0.1  # control


def test_a_base_of_flow_matching_has_no_score_at_pure_noise():
    changes = dynamics(taken(EVERY["flux"].model()))
    assert (changes[0] == 0).all() and (changes[1:] > 0).any() and changes.isfinite().all()


def test_few_steps_wrong_windows_and_banks_of_other_steps_are_refused():
    four = taken(EVERY["flux"].model(), steps=4)
    with pytest.raises(UserError, match="about 20 sampling steps, and 4 leave too few"):
        ScoreDynamics(four, lambda z: z)
    written = planted(3)
    with pytest.raises(UserError, match="T_c < T_d"):
        ScoreDynamics(written, lambda z: z, window=Window(0.5, 0.4))
    with pytest.raises(UserError, match="of 25 sampling steps, not of 20"):
        ScoreDynamics(written, lambda z: z, bank=[1.0] * 24)


# Paper


def test_the_papers_threshold_is_the_larger_of_deviation_and_bank():
    row = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 100.0])
    changes = row.view(1, 1, 1, 6)
    mad = float(np.median(np.abs(row.numpy() - np.median(row.numpy()))))  # 1.5
    for bank, tau in ((0.1, mad), (2.5, 2.5), (50.0, 50.0)):
        map = paper_map(changes, torch.tensor([[bank]]))
        assert torch.equal(map.flatten() > 0.5, row > tau)
        torch.testing.assert_close(map.flatten(), row / (row + tau))
    twice = paper_map(changes, torch.tensor([[0.1]]), factor=2.0)
    assert torch.equal(twice.flatten() > 0.5, row > 2 * mad)


def test_the_papers_omega_is_the_union_over_steps():
    quiet = torch.ones(3, 1, 4, 4)
    changes = quiet.clone()
    changes[0, 0, 0, 0] = changes[2, 0, 3, 3] = 5.0
    found = paper_map(changes, torch.full((3, 1), 2.0))[0, 0] > 0.5
    assert found.nonzero().tolist() == [[0, 0], [3, 3]]
    assert not (paper_map(quiet, torch.full((3, 1), 2.0)) > 0.5).any()


def test_the_paper_reads_its_window_alone_and_each_step_against_its_own_bank():
    window, bank = Window(t_c=0.5, t_d=0.8), [2.0] * 19
    assert list(window.read(20)) == [5, 6, 7, 8, 9]
    bank[6] = 50.0  # between steps 6 and 7
    for at in range(1, 20):
        walked, clean = Trajectory([Level(1.0, 0.0)] * 21), torch.zeros(1, 3, 32, 32)
        for i in range(20):
            clean = clean + 1 + 4 * (SQUARE if i == at else 0)
            walked.add(torch.zeros_like(clean), clean)
        map = ScoreDynamics(walked, lambda z: z, "paper", window, bank)(clean)
        assert torch.equal(map > 0.5, SQUARE if at in (5, 6, 8, 9) else SQUARE & False), at


# Code: the release, written out once more in numpy, with its own sizes at 256 x 256


def release_mask(frames, scale=3, least=100, most=10_000, width=5):
    """`get_artifact_mask` of the release: uint8 frames (s, h, w, 3) in, a mask out."""
    mask = np.zeros(frames.shape[1:3], bool)
    for before, after in zip(frames[:-1], frames[1:], strict=True):
        change = np.abs(after.astype(np.float32) - before.astype(np.float32))
        change = ndimage.gaussian_filter(change, sigma=2)
        middle = np.median(change)
        mad = np.median(np.abs(change - middle))
        mask |= change.max(axis=2) > middle + scale * 1.4826 * mad
    numbers, _ = ndimage.label(mask)
    sizes = np.bincount(numbers.ravel())
    mask &= (sizes[numbers] > least) & (sizes[numbers] < most)
    numbers, count = ndimage.label(mask)
    kept = np.zeros_like(mask)
    for i in range(1, count + 1):
        if ndimage.binary_erosion(numbers == i, structure=np.ones((width, width), bool)).any():
            kept |= numbers == i
    return kept


def film(side=256, seed=0):
    """Noise that settles, a disc that moves, a thin line, a speck and a large plane that change."""
    g = torch.Generator().manual_seed(seed)
    frames = 0.5 + 0.05 * torch.randn(5, 1, 3, side, side, generator=g)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    unit = side / 256
    for s in range(5):
        disc = (rows - 80 * unit) ** 2 + (columns - (60 + 6 * s) * unit) ** 2 < (18 * unit) ** 2
        frames[s, 0, :, disc] = 0.9
    frames[3, 0, 0, round(150 * unit), round(20 * unit) : round(200 * unit)] = 1.0
    frames[2, 0, 1, round(200 * unit) : round(204 * unit), round(30 * unit) : round(34 * unit)] = 1
    frames[4, 0, :, round(120 * unit) :, round(120 * unit) :] -= 0.3
    return frames.clamp(0, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_code_is_the_releases_mask_to_the_pixel(seed):
    frames = film(seed=seed)
    eight_bit = (frames[:, 0] * 255).floor().byte().permute(0, 2, 3, 1).numpy()
    expected = release_mask(eight_bit)
    found = (code_map(frames) >= 0.5)[0, 0].numpy()
    assert 1000 < expected.sum() < 30_000
    assert (found != expected).mean() < 1e-4  # float32 here and there
    for other in ({"scale": 2}, {"least": 1}, {"most": 500}, {"width": 45}):  # control: all count
        assert (release_mask(eight_bit, **other) != expected).mean() > 5e-4, other


def test_the_blur_is_scipys_and_runs_over_colours_too():
    values = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    found = values
    for dim in range(3):
        found = score_dynamics.blurred(found, dim, 2.0)
    expected = ndimage.gaussian_filter(values.numpy(), sigma=2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    apart = ndimage.gaussian_filter(values.numpy(), sigma=(0, 2, 2))
    assert np.abs(apart - expected).max() > 0.05  # control: colours mix


def test_the_letter_reads_the_noise_where_x0_hat_stands_still():
    """w s = -ratio eps changes with the ratio alone; what it is said to follow does not change."""
    still = planted(0, jump=0.0)
    still.clean[:] = [still.clean[0]] * 20
    eps = (still.entering[0] - still.levels[0].signal * still.clean[0]) / still.levels[0].noise
    still.entering[:] = [joined(still.clean[0], eps, level) for level in still.levels[:20]]
    size = eps.square().mean(dim=1).sqrt()
    for change in dynamics(still)[:10]:
        assert torch.corrcoef(torch.stack([change.flatten(), size.flatten()]))[0, 1] > 0.99
    assert dynamics(still, "x0").abs().max() == 0


def test_eight_bits_hide_from_code_what_the_paper_sees():
    """The release looks at pictures of x0-hat: a change below one level is none."""
    changes = torch.full((3, 1, 3, 32, 32), 0.5)
    changes[1, ..., 8:16, 4:12] += 0.4 / 255
    assert not (code_map(changes) >= 0.5).any()
    seen = changes.diff(dim=0).square().mean(dim=2).sqrt()
    assert torch.equal(paper_map(seen, seen.mean(dim=(2, 3))) > 0.5, SQUARE)


def test_the_releases_sizes_go_with_the_image_here():
    """A quarter of the image is no artifact at 256 pixels; the release takes it for one at 64."""
    for side, kept in ((256, False), (64, True)):
        frames = film(side=side)
        eight_bit = (frames[:, 0] * 255).floor().byte().permute(0, 2, 3, 1).numpy()
        assert release_mask(eight_bit)[3 * side // 4, 3 * side // 4] == kept
        found = code_map(frames)[0, 0] >= 0.5
        assert found.any() and not found[3 * side // 4, 3 * side // 4]


def test_regions_against_scipy():
    masks = torch.rand(4, 48, 40, generator=torch.Generator().manual_seed(1)) > 0.42
    for mask, numbers in zip(masks, region_numbers(masks), strict=True):
        labels, count = ndimage.label(mask.numpy())
        pairs = {(int(a), int(b)) for a, b in zip(labels.flat, numbers.flatten(), strict=True)}
        assert len(pairs) == count + 1  # one number a region, another for each
        sizes = np.bincount(labels.ravel())[labels]
        expected = mask.numpy() & (sizes > 3) & (sizes < 60)
        assert np.array_equal(of_size(mask[None], 3, 60)[0].numpy(), expected)
        thin = ndimage.binary_erosion(mask.numpy(), np.ones((3, 3), bool))
        assert np.array_equal(eroded(mask[None], 1)[0].numpy(), thin)
        wide = np.isin(labels, labels[thin][labels[thin] > 0]) & mask.numpy()
        assert np.array_equal(of_width(mask[None], 1)[0].numpy(), wide)
