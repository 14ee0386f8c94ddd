"""Correctors on tiny bases of every kind of prediction: formulas by hand, what stays untouched."""

import functools
from contextlib import nullcontext
from dataclasses import fields
from typing import get_args

import pytest
import torch

from base_models.sample import sample
from base_models.trajectory import (
    Trajectory,
    joined,
    levels,
    noise_in,
    weighted_score,
    weighted_scores,
)
from core.errors import UserError
from core.images import round_to_8bit
from detector import last_layer
from detector.bayes import Uncertainty, coefficients
from detector.score_dynamics import Window, median
from tests.base_models.families import EVERY
from tests.chain import Spots
from tests.tiny import SIZE
from treat.correctors import CORRECTORS, NEEDS, defaults, make, settings_of
from treat.correctors.asced import Asced, StateReplacement, earlier, stochastic
from treat.correctors.bayes import Bayes
from treat.correctors.clipping import ScoreClipping
from treat.correctors.find import ByDetector, ByDynamics
from treat.correctors.guided import Guide, Sargd
from treat.correctors.moment import Moment, asked_again, inside
from treat.correctors.sampling import draw_corrected
from treat.names import CorrectorName
from treat.step import Chain

STEPS = 10
AT = 5
"""The step that starts at T_c."""
SEEDS = [3, 4]
BASES = ("ddpm", "ddpm, v", "ldm", "sdxl", "sdxl, DDIM", "flux")
every_base = pytest.mark.parametrize("name", BASES)


class Half:
    """Finds the left half of the first image, and nothing in the others."""

    def __call__(self, moment, window):
        mask = torch.zeros(len(moment.leaving), 1, SIZE, SIZE)
        mask[0, ..., : SIZE // 2] = 1
        return mask


class Bright(torch.nn.Module):
    """A detector that anybody can check."""

    differentiable = True

    def forward(self, images):
        return images.mean(dim=1, keepdim=True).clamp(0, 1)


@functools.cache
def model_of(name):
    return EVERY[name].model()


def chain_of(name, steps=STEPS):
    model = model_of(name)
    schedule = model.schedule(steps, SIZE, SIZE)
    return Chain(model, schedule, model.encode_prompts(["a hand", "a face"]))


def drawn(name, corrector, seeds=SEEDS, steps=STEPS):
    chain = chain_of(name, steps)
    rows = {n: part[: len(seeds)] for n, part in chain.conditioning.items()}
    chain = Chain(chain.model, chain.schedule, rows)
    return draw_corrected(chain, chain.model.noise(seeds, SIZE, SIZE), seeds, corrector)


def laplace(name):
    """Of the tiny base itself, so that it is loud enough to be seen."""
    layer = last_layer.last_layer(model_of(name).network)
    return last_layer.Laplace(layer, {n: 0.1 * w.abs() + 0.01 for n, w in layer.named_parameters()})


def kinds():
    """Every corrector, masks by hand or by a detector that sees something."""
    for name in CORRECTORS:
        for variant in ("paper", "x0", "code") if name == "asced" else ("",):
            settings = {"variant": variant} if variant else {}
            yield pytest.param(name, settings, id=f"{name} {variant}".strip())


@every_base
def test_without_a_corrector_it_is_plain_sampling(name):
    chain = chain_of(name)
    found = drawn(name, None)
    images = round_to_8bit(chain.model.decode(found.latents))
    plain = sample(chain.model, ["a hand", "a face"], SEEDS, steps=STEPS, height=SIZE, width=SIZE)
    assert torch.equal(images, plain)
    assert len(found.trajectory.clean) == STEPS and found.mask is None


def pairs():
    """Every corrector on every base; a third at once, so that each of them is there."""
    for place, name in enumerate(BASES):
        for number, kind in enumerate(kinds()):
            marks = [pytest.mark.slow] if (place + number) % 3 else []
            yield pytest.param(name, *kind.values, id=f"{kind.id}-{name}", marks=marks)


@pytest.mark.parametrize("name, corrector, settings", list(pairs()))
def test_every_corrector_draws_on_every_base(name, corrector, settings):
    """Finite images that differ from plain ones, one pass a step, each image by its seed alone."""
    parts = {"find": Half(), "detector": Bright(), "laplace": laplace(name), None: None}
    made = make(corrector, parts[NEEDS[corrector]], settings)
    found = drawn(name, made)
    assert found.latents.isfinite().all() and found.latents.dtype == torch.float32
    assert found.mask is not None and found.mask.shape[1] == 1
    if corrector != "sargd":  # which has to find a step that was better than the next
        assert found.mask.max() == 1
        assert (found.latents - drawn(name, None).latents).abs().max() > 1e-3
    again = drawn(name, made)
    assert torch.equal(again.latents, found.latents)
    first = drawn(name, made, seeds=SEEDS[:1])
    near = (found.latents[:1] - first.latents).abs() < 0.01 + 0.01 * first.latents.abs()
    assert near.float().mean() > 0.9  # but for a cell at a threshold, and what grows of it


@pytest.mark.parametrize("corrector", ["asced", "state_replacement"])
def test_an_image_in_which_nothing_is_found_stays_what_it_was_to_the_bit(corrector):
    """The release draws its stochastic step anew for every image of the batch."""
    plain = drawn("ddpm", None)
    for settings in (
        ({"variant": "paper"}, {"variant": "x0"}, {"variant": "code"})
        if corrector == "asced"
        else ({},)
    ):
        found = drawn("ddpm", make(corrector, Half(), settings))
        assert torch.equal(found.latents[1], plain.latents[1])
        assert not torch.equal(found.latents[0], plain.latents[0])
        assert torch.equal(found.mask[0, 0, :, : SIZE // 2], torch.ones(SIZE, SIZE // 2))
        assert found.mask[1].sum() == 0


def moment_at(name, i, seeds=SEEDS) -> Moment:
    """The moment after step i of a plain sampling."""
    seen = []

    def keep(moment):
        if moment.i == i:
            seen.append(moment)
        return moment.unchanged()

    drawn(name, keep, seeds)
    moment = seen[0]
    walked = moment.trajectory
    cut = Trajectory(walked.levels, walked.entering[: i + 1], walked.clean[: i + 1])
    return Moment(moment.chain, cut, moment.leaving, seeds, {})


@every_base
def test_the_papers_correction_is_equation_6(name):
    """x = (sqrt(abar) x0-hat + sqrt(1 - abar) eps) gamma xi, in the mask alone."""
    moment = moment_at(name, AT - 1)
    new, mask = Asced(Half(), gamma=0.7)(moment)
    model, schedule = moment.chain.model, moment.chain.schedule
    eps, xi = moment.noise(0), moment.noise(1)
    expected = model.noised(moment.clean, AT, schedule, eps) * 0.7 * xi
    found = mask.expand_as(new) == 1
    torch.testing.assert_close(new[found], expected[found], rtol=1e-3, atol=1e-3)
    assert torch.equal(new[~found], moment.leaving[~found])
    assert found.any() and (~found).any()
    assert (eps - xi).abs().max() > 1 and abs(xi.mean()) < 0.2 and abs(xi.std() - 1) < 0.1
    for other in (AT - 2, AT, AT + 1):  # no other time
        assert Asced(Half())(moment_at(name, other)).mask is None


@every_base
def test_the_codes_correction_is_additive_and_takes_an_earlier_picture(name):
    moment = moment_at(name, AT - 1)
    for back, shake in ((1, 0.0), (3, 0.0), (2, 0.3)):
        new, mask = Asced(Half(), "code", back=back, shake=shake)(moment)
        clean = moment.trajectory.clean[AT - back] + shake * moment.noise(2)
        expected = moment.chain.model.noised(clean, AT, moment.chain.schedule, moment.noise(0))
        found = mask.expand_as(new) == 1
        torch.testing.assert_close(new[found], expected[found], rtol=1e-3, atol=1e-3)
        assert torch.equal(new[~found], moment.leaving[~found])
    assert torch.equal(earlier(moment, 99), moment.trajectory.clean[0])
    replaced = StateReplacement(Half(), back=3)(moment)
    unshaken = Asced(Half(), "code", back=3, shake=0.0)(moment)
    assert torch.equal(replaced.latents, unshaken.latents)


@pytest.mark.parametrize("name", ["ddpm", "ldm"])
def test_the_stochastic_step_is_ddims(name):
    """Against diffusers' own, eta and all, with the same noise."""
    moment = moment_at(name, AT)
    scheduler = moment.chain.model.scheduler
    scheduler.set_timesteps(STEPS)
    t, z = scheduler.timesteps[AT], moment.noise(3)
    entering = moment.trajectory.entering[-1]
    with torch.no_grad():
        eps = moment.chain.model._predict(entering, t)
    for eta in (0.0, 0.5, 1.0):
        theirs = scheduler.step(eps, t, entering, eta=eta, variance_noise=z).prev_sample
        torch.testing.assert_close(stochastic(moment, eta), theirs, rtol=1e-3, atol=1e-3)


@every_base
def test_a_step_taken_with_its_own_estimate_and_noise_is_the_step(name):
    """So that a corrector which changes nothing changes nothing."""
    moment = moment_at(name, AT)
    torch.testing.assert_close(moment.going_to(moment.clean), moment.leaving, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(stochastic(moment, 0.0), moment.leaving, rtol=1e-3, atol=2e-3)
    other = moment.going_to(moment.clean + 0.5)
    assert (other - moment.leaving).abs().max() > 0.05  # control


def test_only_one_step_after_the_correction_is_stochastic():
    noises = []
    corrector = Asced(Half(), "code", eta=1.0)

    def watched(moment):
        before = moment.leaving
        found = corrector(moment)
        if not torch.equal(found.latents, before):
            noises.append(moment.i)
        return found

    drawn("ddpm", watched)
    assert noises == [AT - 1, AT]
    noises.clear()
    corrector = Asced(Half(), "paper")
    drawn("ddpm", watched)
    assert noises == [AT - 1]


def test_clipping_bounds_every_change_of_the_score():
    bound = 1.0
    clipped = drawn("ddpm", ScoreClipping(3.0))
    loose = drawn("ddpm", ScoreClipping(1e9))
    torch.testing.assert_close(loose.latents, drawn("ddpm", None).latents)
    assert loose.mask.sum() == 0 and 0 < clipped.mask.mean() < 1
    moment = moment_at("ddpm", 1)
    before, now = weighted_scores(moment.trajectory)
    assert torch.equal(weighted_score(moment.trajectory, 0), before)
    assert torch.equal(weighted_score(moment.trajectory, -1), now)  # one alone: no stack of all
    moment.notes["score"] = before
    found = ScoreClipping(bound)(moment)
    sizes = (now - before).abs().flatten(1)[None]
    limit = torch.maximum(
        median((sizes - median(sizes)).abs()), sizes.mean(dim=2, keepdim=True)
    ).view(-1, 1, 1, 1)
    kept = before + (now - before).clamp(-limit, limit)
    assert torch.equal(moment.notes["score"], kept)
    x, level = moment.trajectory.entering[-1], moment.level
    clean = x / level.signal + kept
    eps = (x - level.signal * clean) / level.noise
    expected = joined(clean, eps, moment.following)
    torch.testing.assert_close(found.latents, expected, rtol=1e-3, atol=2e-3)


def test_sargd_draws_to_the_most_real_estimate_so_far():
    moment = moment_at("ddpm", 4)
    good = torch.zeros_like(moment.clean)
    moment.notes.update(reference=good, flaw=torch.zeros(2, 1, 1, 1))
    found = Sargd(Bright(), strength=0.5, threshold=0.0)(moment)
    expected = moment.going_to(moment.clean * 0.5)
    torch.testing.assert_close(found.latents, expected)
    assert torch.equal(moment.notes["reference"], good)
    # A reference that is no better is replaced, and nothing moves.
    moment.notes.update(reference=good, flaw=torch.full((2, 1, 1, 1), 9.0))
    found = Sargd(Bright(), threshold=0.0)(moment)
    assert torch.equal(found.latents, moment.leaving) and found.mask.sum() == 0
    assert torch.equal(moment.notes["reference"], moment.clean)


@pytest.mark.parametrize("name", ["ddpm", "ldm, AutoencoderKL", "flux"])
def test_guidance_lowers_the_map_and_passes_no_network(name):
    moment = moment_at(name, STEPS - 2)
    passes = []
    moment.chain.model.network.register_forward_pre_hook(lambda *_: passes.append(1))
    detector = Spots()
    found = Guide(detector, threshold=0.0, scale=0.05)(moment)
    assert not passes and found.latents.isfinite().all()

    def score(latents):
        eps = moment.eps
        clean = (latents - moment.following.noise * eps) / moment.following.signal
        return detector(moment.chain.decode(clean)).mean()

    assert score(found.latents) < score(moment.leaving)
    moved = (found.latents != moment.leaving).any(dim=1, keepdim=True)
    assert torch.equal(found.mask == 1, moved) and moved.float().mean() > 0.9
    assert not found.latents.requires_grad
    blind = Guide(Bright(), threshold=2.0)(moment)  # sees nothing above 2
    assert torch.equal(blind.latents, moment.leaving) and blind.mask.sum() == 0
    assert Guide(detector, start=0.1)(moment_at(name, 2)).mask is None


@every_base
def test_bayes_carries_the_variance_along_the_samplers_own_line(name):
    """x' = a x + b eps is the step itself; without uncertainty of eps a^2 is all that is left."""
    moment = moment_at(name, 1)
    a, b = coefficients(moment.level, moment.following)
    entering = moment.trajectory.entering[-1]
    torch.testing.assert_close(a * entering + b * moment.eps, moment.leaving, rtol=1e-3, atol=2e-3)
    unsure = Uncertainty(moment.trajectory, asked_again(moment.chain, SEEDS), laplace(name))
    half = torch.full_like(moment.leaving, 0.5)
    torch.testing.assert_close(unsure.after(1, half), 0.5 * a * a * torch.ones_like(half))


@pytest.mark.parametrize("name", ["ddpm", "ldm", "flux"])
def test_the_variance_is_that_of_many_samplings(name):
    """Monte Carlo without any of BayesDiff's bookkeeping, over the steps that it asks."""
    chain, steps = chain_of(name), 2
    trajectory = drawn(name, None).trajectory
    first = 0 if trajectory.levels[0].signal else 1
    cut = Trajectory(
        trajectory.levels, trajectory.entering[: first + steps], trajectory.clean[: first + steps]
    )
    again = asked_again(chain, SEEDS)
    found = Uncertainty(cut, again, laplace(name), samples=60, every=1).variance()
    ends = []
    for s in range(60):
        x = trajectory.entering[first]
        for i in range(first, first + steps):
            a, b = coefficients(*trajectory.levels[i : i + 2])
            with laplace(name).sampled(torch.Generator().manual_seed(1000 * i + s)):
                clean = again.clean(x, i)
            x = a * x + b * noise_in(x, clean, trajectory.levels[i])
        ends.append(x)
    wanted = torch.stack(ends).var(dim=0)
    assert wanted.mean() > 0
    assert found.mean().item() == pytest.approx(wanted.mean().item(), rel=0.3)
    pair = torch.stack([found.flatten(), wanted.flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.5


@pytest.mark.parametrize("name", ["ddpm", "ldm, AutoencoderKL"])
def test_its_map_is_of_the_finished_images_and_each_images_own(name):
    """Pixels of a base that draws pixels, decoded samples of latents; 0.5 at the limit."""
    found = drawn(name, None)
    images = model_of(name).decode(found.latents).clamp(0, 1)
    again = asked_again(chain_of(name), SEEDS)
    detector = Uncertainty(found.trajectory, again, laplace(name), samples=3)
    maps = detector(images)
    assert maps.shape == (2, 1, SIZE, SIZE) and 0 <= maps.min() < 0.5 < maps.max() <= 1
    seen = detector.variance().mean(dim=1, keepdim=True)
    if name == "ddpm":
        flat = seen.flatten(1)[None]
        middle = median(flat)
        limit = middle + 3 * 1.4826 * median((flat - middle).abs())
        assert torch.equal(maps > 0.5, seen > limit.view(-1, 1, 1, 1))
    assert not detector.differentiable
    with pytest.raises(ValueError, match="1 images"):
        detector(images[:1])
    sure = last_layer.last_layer(model_of(name).network)
    zeros = last_layer.Laplace(sure, {n: 0 * w for n, w in sure.named_parameters()})
    assert Uncertainty(found.trajectory, again, zeros, samples=3)(images).max() == 0  # control


def test_bayes_asks_every_fifth_step_up_to_t_c_and_corrects_there():
    passes, model = [], model_of("ddpm")
    handle = model.network.register_forward_pre_hook(lambda *_: passes.append(1))
    found = drawn("ddpm", Bayes(laplace("ddpm"), samples=3, every=2))
    handle.remove()
    assert len(passes) == STEPS + 3 * len([0, 2, 4])  # T_c is at step 5
    assert 0 < found.mask.mean() < 0.5
    sure = last_layer.last_layer(model.network)
    zeros = last_layer.Laplace(sure, {n: 0 * w for n, w in sure.named_parameters()})
    certain = drawn("ddpm", Bayes(zeros, samples=3, every=2))
    assert torch.equal(certain.latents, drawn("ddpm", None).latents)  # control


def test_sampled_weights_are_the_layers_own_with_noise_of_their_deviations():
    layer = torch.nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    sizes = {name: torch.full_like(weight, 0.5) for name, weight in layer.named_parameters()}
    x, g = torch.randn(1, 2, 4, 4), lambda: torch.Generator().manual_seed(7)
    with last_layer.Laplace(layer, sizes).sampled(g()):
        found = layer(x)
    draws = g()
    moved = [w + 0.5 * torch.randn(w.shape, generator=draws) for w in layer.parameters()]
    expected = torch.nn.functional.conv2d(x, *moved, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - layer(x)).abs().max() > 0.1  # and the layer is as before


def test_the_last_layers_variances_are_those_of_the_training_loss():
    model = model_of("ddpm")
    clean = model.noise([5, 6], SIZE, SIZE)
    found = last_layer.fit(model, clean, {}, [1, 2], prior=2.0)
    layer = model.network.conv_out
    total = torch.zeros_like(layer.bias)
    layer.requires_grad_(True)
    for b, seed in enumerate((1, 2)):
        loss = model.offline_loss(clean[b : b + 1], {}, [seed]) * clean[0].numel() / 2
        total += torch.autograd.grad(loss, layer.bias)[0].square()
    layer.requires_grad_(False)
    torch.testing.assert_close(found.deviations["bias"], (total + 2.0).rsqrt())
    assert set(found.deviations) == {"weight", "bias"}
    assert not any(weight.requires_grad for weight in model.network.parameters())
    with pytest.raises(UserError, match="no last layer"):
        last_layer.last_layer(torch.nn.Sequential())


def test_dynamics_find_by_either_variant():
    moment = moment_at("ddpm", AT - 1)
    for variant in ("paper", "x0", "code"):
        mask = ByDynamics(variant)(moment, Window())
        assert mask.shape[:2] == (2, 1) and set(mask.unique().tolist()) <= {0.0, 1.0}
    seen = ByDetector(Bright(), 0.4)(moment, Window())
    assert torch.equal(seen, (moment.pictures().mean(1, True) >= 0.4).float())


def test_a_mask_covers_every_cell_that_it_touches():
    moment = moment_at("ldm", 2)
    mask = torch.zeros(2, 1, SIZE, SIZE)
    mask[0, 0, 5, 9] = 1
    cells = moment.cells(mask)
    assert cells.shape[-2:] == (SIZE // 2, SIZE // 2)
    assert cells.nonzero().tolist() == [[0, 0, 2, 4]]
    old, new = torch.zeros(2, 4, 16, 16), torch.ones(2, 4, 16, 16)
    assert inside(cells, new, old).sum() == 4


def test_every_corrector_has_its_name_on_the_command_line():
    assert get_args(CorrectorName) == tuple(CORRECTORS)


def test_settings_by_words():
    assert settings_of("asced", ["gamma=0.5", "back=3"]) == {"gamma": 0.5, "back": 3}
    assert defaults("guide") == {"threshold": 0.1, "scale": 0.05, "start": 0.5}
    for words, says in (
        (["gama=1"], "it has gamma"),
        (["gamma"], "NAME=VALUE"),
        (["gamma=much"], "is a number, not 'much'"),
        (["back=1.5"], "is a number, not '1.5'"),
        (["find=1"], "no setting of 'asced'"),
        (["back=0"], "at least 1"),
        (["gamma=-1"], "at least 0"),
        (["gamma=nan"], "at least 0"),
    ):
        with pytest.raises(UserError, match=says):
            settings_of("asced", words)
    with pytest.raises(UserError, match="at least 2"):
        settings_of("bayes", ["samples=1"])  # they have no variance


@pytest.mark.parametrize("name", CORRECTORS)
def test_shares_and_probabilities_end_at_one(name):
    shares = {"threshold", "strength", "start", "t_c", "t_d", "eta"}
    for key in defaults(name):
        if key in shares:
            with pytest.raises(UserError, match=f"{key} of '{name}' is at least 0 and at most 1"):
                settings_of(name, [f"{key}=1.01"])
            assert settings_of(name, [f"{key}=1"]) == {key: 1}
        else:  # control: other numbers have no such end
            assert settings_of(name, [f"{key}=5"]) == {key: 5}


def test_what_leads_must_be_there_and_have_a_gradient():
    for name in ("sargd", "trajectory", "guide"):
        with pytest.raises(UserError, match="give --detector FOLDER"):
            make(name, None, {})
    blind = Bright()
    blind.differentiable = False
    with pytest.raises(UserError, match="has none"):
        make("guide", blind, {})
    assert isinstance(make("sargd", blind, {}), Sargd)


def test_the_part_that_each_needs_is_its_first_field_and_no_number():
    assert tuple(NEEDS) == tuple(CORRECTORS)
    for name, need in NEEDS.items():
        first, *others = fields(CORRECTORS[name])
        assert (first.name == need) == (need is not None)
        named = others if need else [first, *others]
        assert {one.name for one in named} - {"variant"} == set(defaults(name))


def test_too_few_steps_are_refused_with_the_cure():
    with pytest.raises(UserError, match="give more steps"):
        drawn("flux", Asced(ByDynamics()), steps=4)


def test_levels_of_a_chain_are_those_of_its_schedule():
    chain = chain_of("flux")
    assert [one.noise for one in levels(chain.model, chain.schedule)] == pytest.approx(
        chain.schedule.sigmas.tolist()
    )
    assert nullcontext is chain.precision
