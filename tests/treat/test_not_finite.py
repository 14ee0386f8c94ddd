"""What is not finite, wherever in an update it comes from: nothing changes; three times, it stops.

A site is a place where a value, or the gradient at it, is spoilt from one update to another.
"""

import copy

import pytest
import torch
from torch.utils._pytree import tree_map

from core.errors import UserError
from core.processes import this_process
from tests.treat.setting import build, config, losses
from treat import drawings, setup, step, terms, train
from treat.offline import RealRows
from treat.step import Chain
from treat.texts import Texts
from treat.update import Update

NAN, INF = float("nan"), float("inf")
SITES = {
    "text": (Texts, "conditioning", NAN),
    "noise": (train.Places, "seeds", INF),  # of which the noise is drawn: see `spoilt_noise`
    "prediction": (Chain, "step", INF),
    "prediction of a step that learns": (Chain, "learning_step", NAN),
    "decode": (step, "decode", NAN),
    "infinite decode": (step, "decode", INF),
    "detector": (train, "reward_term", NAN),
    "infinite detector": (train, "reward_term", INF),
    "pixel loss": (terms, "pixel_loss", INF),
    "lock": (train, "lock_to_base", INF),
    "real images": (RealRows, "rows", INF),
    "offline loss": (train, "offline_term", NAN),
    "gradient at the image": (terms, "straight_through_clamp", "gradient"),
    "gradient at the map": (terms, "pixel_loss", "gradient"),
    "gradient at the latents": (drawings, "latent_gradient", INF),
    "gradient of the network": (Chain, "learning_step", "gradient"),
    "gradient of the offline loss": (train, "offline_term", "gradient"),
    "gradient whose norm is too large": (drawings, "latent_gradient", 1e25),
}
BAD = {2, 4, 5, 6}
"""Updates that are spoilt: one alone, then three in a row."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def opened(world, tmp_path_factory):
    """What a run opens: base, texts, real images, and detectors."""
    given, place = config(world, tmp_path_factory.mktemp("opened")), this_process()
    model = setup.open_model(given, place, place.device)
    return model, setup.open_detectors(given, place.device, None)


def spoilt(found, how):
    """Every floating tensor times `how`, or as it is with a gradient that is not a number."""
    if callable(found):  # the reward's term, of which the detector is spoilt
        detector = found.detector
        found.detector = lambda images: detector(images) * how
        return found

    def spoil(value):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if how == "gradient":
            if value.requires_grad:
                value.register_hook(lambda gradient: gradient * NAN)
            return value
        return value * how

    if hasattr(found, "base"):  # the lock
        return type(found)(found.weight, spoil(found.base), found.inside, found.share)
    return tree_map(spoil, dict(found) if isinstance(found, dict) else found)


def plant(monkeypatch, site, bad):
    """Spoil the site in the `bad` updates; how often it was spoilt in each."""
    owner, name, how = SITES[site]
    at, met, learn = [0], [], train.learn

    def learning(lesson, number, *rest):
        at[0] = number
        if site == "noise" and number in bad:
            monkeypatch.setattr(lesson.model, "noise", spoilt_noise(lesson.model.noise), False)
        return learn(lesson, number, *rest)

    def spoilt_noise(whole):
        def noise(*given):
            found = whole(*given)
            if at[0] not in bad:
                return found
            met.append(at[0])
            return found * how

        return noise

    def spoiling(*given, **more):
        found = whole(*given, **more)
        if at[0] not in bad or (how == "gradient" and not torch.is_grad_enabled()):
            return found
        met.append(at[0])
        return spoilt(found, how)

    monkeypatch.setattr(train, "learn", learning)
    if site != "noise":
        whole = getattr(owner, name)
        monkeypatch.setattr(owner, name, spoiling)
    return met


def follow(monkeypatch):
    """Adapters and optimizer after every update, the one that ends the run included."""
    states, apply = [], Update.apply

    def applied(update, *given):
        try:
            return apply(update, *given)
        finally:
            optimizer, _ = update.state()
            values = [*update.weights, *(optimizer[name] for name in sorted(optimizer))]
            states.append(torch.cat([v.detach().flatten().double() for v in values]))

    monkeypatch.setattr(Update, "apply", applied)
    return states


@pytest.mark.parametrize("site", SITES)
def test_a_bad_update_changes_nothing_and_three_in_a_row_end_it(
    world, opened, tmp_path, monkeypatch, site
):
    settings = config(world, tmp_path, steps=9, watch_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(train, "check", lambda *_: None)
        patch.setattr(train, "open_model", lambda *_: copy.deepcopy(opened[0]))
        patch.setattr(train, "open_detectors", lambda *_: opened[1])
        met, states = plant(patch, site, BAD), follow(patch)
        with pytest.raises(UserError, match="3 updates in a row were not finite, .* step 6 of se"):
            train.main(settings)
    assert set(met) == BAD and len(states) == 6
    assert [losses(tmp_path)[number]["skipped"] for number in range(1, 6)] == [0, 1, 0, 1, 2]
    first, second, third, fourth, fifth, sixth = states
    assert torch.equal(first, second) and first.isfinite().all()
    assert len(second) == len(third) and not torch.equal(second, third)  # control: a good one
    assert all(torch.equal(third, later) for later in (fourth, fifth, sixth))


def test_the_same_command_replays_it(world, tmp_path, monkeypatch):
    settings = config(world, tmp_path, steps=7, checkpoint_every=1, watch_every=0)
    for _ in range(2):
        with monkeypatch.context() as patch:
            met = plant(patch, "decode", BAD)
            with pytest.raises(UserError, match="the last at step 6 of seed 0"):
                train.main(settings)
    assert set(met) == {6}  # the second time nothing before it
    assert train.main(settings) == 0  # control: what was planted is gone
    assert losses(tmp_path)[6]["skipped"] == 0 and max(losses(tmp_path)) == 7
