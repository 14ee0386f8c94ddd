"""The real `main`: what it leaves, what each term does, and what it refuses."""

import json
import re

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from core import checkpoint
from core.errors import UserError
from tests.treat.setting import build, config, digest, losses
from treat import drawings, train
from treat import step as treat_step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


def adapters(folder, step):
    return checkpoint.load(folder / "checkpoints", step).tensors["adapter"]


def test_a_run_leaves_what_it_should(world, tmp_path):
    out = tmp_path / "run"
    settings = config(world, out, picture_every=4, checkpoint_every=2)
    assert train.main(settings) == 0
    figures = losses(out)
    assert sorted(figures) == [0, 1, 2, 3, 4]
    assert {"pixel", "lock", "offline", "gradient_norm", "skipped"} <= set(figures[1])
    assert figures[1]["pixel"] > 0 and figures[1]["gradient_norm"] > 0
    watched = {"reward_mean", "second_mean", "second_frequency", "sharpness", "watch_offline"}
    assert watched <= set(figures[0]) and watched <= set(figures[4])
    assert sorted(path.name for path in (out / "pictures").glob("*")) == [
        "step-00000000.png",
        "step-00000004.png",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["best_step"] in checkpoint.steps(out / "checkpoints")
    assert any(tensor.abs().max() > 0 for tensor in adapters(out, 4).values())


@pytest.mark.parametrize(
    ("second", "told"), [("second", "the best is step"), (None, "nothing chose one")]
)
def test_the_end_says_who_chose_the_step(world, tmp_path, second, told):
    out = tmp_path / "run"
    train.main(config(world, out, steps=2, second_detector=second and world / second))
    last = (out / "events.jsonl").read_text().splitlines()[-1]
    assert "finished after step 2" in last and told in last


def test_the_same_settings_give_the_same_bits(world, tmp_path):
    torch.manual_seed(1)
    train.main(config(world, tmp_path / "a", steps=2))
    torch.manual_seed(2)
    train.main(config(world, tmp_path / "b", steps=2, picture_every=1, recompute=False))
    train.main(config(world, tmp_path / "c", steps=2, seed=1))
    one, two, other = (digest(tmp_path / x, 2, ("adapter", "optimizer")) for x in "abc")
    assert one == two  # neither pictures, nor the global state, nor keeping graphs change a bit
    assert one != other


def test_the_menu_of_steps_is_followed_and_repeats(world, tmp_path):
    menu = [{"redraws": 2}, {"redraws": 3}, {"learning": [0]}, {"last": 2}, {}]
    quiet = {"steps": 2, "lock_weight": 0}
    runs = [config(world, tmp_path / str(i), **quiet, **menu[i % 5]) for i in range(8)]
    for one in runs:
        train.main(one)
    found = [digest(one.out, 2, ("adapter",)) for one in runs]
    assert found[:3] == found[5:] and len(set(found)) == 5


@pytest.mark.parametrize("menu", [{}, {"redraws": 1}], ids=str)
def test_pixels_alone_lower_the_score(world, tmp_path, menu):
    out = tmp_path / "run"
    quiet = {"offline": None, "offline_weight": 0.0, "lock_weight": 0.0, **menu}
    train.main(config(world, out, steps=16, watch_every=16, selection="all", **quiet))
    figures = losses(out)
    assert figures[16]["reward_mean"] < figures[0]["reward_mean"]
    assert figures[1]["offline"] == figures[1]["lock"] == 0


def test_the_control_draws_nothing(world, tmp_path, monkeypatch):
    def refuse(*_args):
        raise AssertionError("the control must not draw")

    monkeypatch.setattr(train, "drawings", refuse)
    train.main(config(world, tmp_path / "run", pixel_weight=0.0, lock_weight=0.0, steps=2))
    assert losses(tmp_path / "run")[1]["offline"] > 0
    with pytest.raises(AssertionError):  # control of the control
        train.main(config(world, tmp_path / "treated", steps=1))


@pytest.mark.parametrize("blocks", [True, False])
def test_checkpointed_blocks_have_freed_memory_given_back(world, tmp_path, monkeypatch, blocks):
    times = []
    monkeypatch.setattr(drawings, "give_back", lambda: times.append(1))
    train.main(config(world, tmp_path / "run", steps=3, checkpoint_blocks=blocks))
    assert len(times) == (6 if blocks else 0)
    assert not train.gives_back(
        config(world, tmp_path, checkpoint_blocks=True), torch.device("meta")
    )


def test_a_linear_decay_begins_at_the_full_rate_and_ends_near_zero(world, tmp_path):
    for decay in ("constant", "linear"):
        settings = config(world, tmp_path / decay, steps=3, decay=decay)
        train.main(settings)
    constant, linear = (losses(tmp_path / decay) for decay in ("constant", "linear"))
    assert constant[2]["offline"] == linear[2]["offline"]  # after one update
    assert constant[3]["offline"] != linear[3]["offline"]
    assert train.rate(settings, 3) == pytest.approx(settings.learning_rate / 3)


def test_accumulation_sees_the_samples_of_a_larger_batch(world, tmp_path):
    train.main(config(world, tmp_path / "a", batch=2, steps=1, clip=1e9))
    train.main(config(world, tmp_path / "b", batch=1, accumulation=2, steps=1, clip=1e9))
    one, two = (losses(tmp_path / x)[1] for x in "ab")
    for name in ("pixel", "offline", "gradient_norm"):
        assert one[name] == pytest.approx(two[name], rel=1e-4)


class Blind:
    differentiable = False

    def __call__(self, images):
        return images.mean(1, keepdim=True)


class Bright(Blind):
    differentiable = True


def test_another_reward_may_be_given(world, tmp_path):
    seen = []

    def reward_for(prompts):
        seen.append(prompts)
        return Bright()

    settings = config(world, tmp_path / "run", detector=None, steps=1, watch_every=0)
    train.main(settings, reward_for=reward_for)
    assert seen[-1][0].startswith("a ")
    train.main(config(world, tmp_path / "other", detector=None, steps=1), reward=Bright())
    with pytest.raises(UserError, match="in place of --detector"):
        train.main(config(world, tmp_path / "both", steps=1), reward=Bright())
    assert not (tmp_path / "both").exists()


class Broken(Bright):
    def __call__(self, images):
        return images.mean(1, keepdim=True) * float("nan")


def test_not_finite_changes_nothing_and_then_stops(world, tmp_path):
    out = tmp_path / "run"
    own = {"detector": None, "second_detector": None, "watch_every": 0}
    settings = config(world, out, steps=9, checkpoint_every=1, **own)
    with pytest.raises(UserError, match="step 3 of seed 0"):
        train.main(settings, reward=Broken())
    first, second = adapters(out, 1), adapters(out, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(tensor.any() for name, tensor in second.items() if "lora_B" in name)
    assert losses(out)[2]["skipped"] == 2


def test_one_bad_update_is_passed_over(world, tmp_path, monkeypatch):
    real, calls = treat_step.latent_gradient, []

    def sometimes(*args):
        calls.append(1)
        return real(*args) * (float("inf") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(drawings, "latent_gradient", sometimes)
    out = tmp_path / "run"
    assert train.main(config(world, out, steps=3, checkpoint_every=1, watch_every=0)) == 0
    figures = losses(out)
    assert [figures[step]["skipped"] for step in (1, 2, 3)] == [0, 1, 0]


REFUSED = {
    "blind detector": ({"detector": None}, {"reward": Blind()}, "differentiable"),
    "no detector": ({"detector": None}, {}, "needs a detector"),
    "size": ({"height": 30}, {}, "divide by 4"),
    "no base": ({"base": "nowhere/at/all"}, {}, "check the path"),
    "no detector folder": ({"detector": "nowhere"}, {}, "no detector folder"),
    "no prompts": ({"prompts": "nowhere.txt"}, {}, "cannot read"),
    "no real images": ({"offline": "nowhere"}, {}, "no folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(name, world, tmp_path):
    changes, given, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        train.main(config(world, tmp_path / "run", **changes), **given)
    assert not (tmp_path / "run").exists()


def test_a_mistyped_hub_id_does_not_take_the_folder(world, tmp_path, monkeypatch):
    def absent(*_args, **_kwargs):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(UserError, match="some-lab/typo cannot be fetched"):
        train.main(config(world, tmp_path / "run", base="some-lab/typo"))
    assert not (tmp_path / "run").exists()
    assert train.main(config(world, tmp_path / "run", steps=1, watch_every=0)) == 0


def test_what_does_not_suit_the_bases_own_steps_is_refused_before_anything(world, tmp_path):
    for changes in ({"last": 5}, {"learning": [4]}):
        told = f"{re.escape(str(world / 'base'))}: .*(5, more than the 4 sampling_steps|0 to 3)"
        with pytest.raises(UserError, match=told):
            train.main(config(world, tmp_path / "run", sampling_steps=None, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"last": 3}, "sampling_steps"),
        ({"last": 1.5}, "last\n.*a number of steps .3., or their share"),
        ({"last": True}, "last"),
        ({"learning": [2]}, "names step 2, and the 2 sampling_steps are 0 to 1"),
        ({"learning": [1, 1]}, "a step twice: 1, 1"),
        ({"learning": []}, "learning"),
        ({"learning": [1], "last": 1}, "leave last out"),
        ({"redraws": 1}, "lock_weight"),
        ({"redraws": 2, "learning": [0, 1], "lock_weight": 0}, "noise alone"),
        ({"redraws": 2, "sampling_steps": 1, "lock_weight": 0}, "noise alone"),
        ({"pixel_weight": 0, "lock_weight": 3}, "set lock_weight to 0"),
        ({"pixel_weight": 0, "lock_weight": 0, "views": 4}, "set views to 1"),
        ({"sizes": ["64x"]}, "HEIGHTxWIDTH in pixels, such as 768x512"),
        ({"targets": "all"}, "'attention' or 'attention.mlp'"),
        ({"pixel_weight": 0, "offline_weight": 0}, "nothing would be learnt"),
        ({"offline": None}, "offline_weight"),
        ({"pixel_weight": 0, "lock_weight": 0, "offline_target": "base"}, "leaves the base"),
        ({"refresh_every": 2}, "annotator"),
        ({"second_detector": None, "patience": 1}, "second_detector"),
    ],
)
def test_settings_that_do_not_agree(world, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(world, tmp_path, **changes)


def test_last_may_be_a_share_and_learning_a_list(world, tmp_path):
    cases = [({"last": 1.0}, 8), ({"last": 0.5}, 4), ({"last": 3}, 3), ({"learning": [0, 6]}, 2)]
    for changes, expected in cases:
        assert config(world, tmp_path, sampling_steps=8, **changes).gradient_steps == expected


def test_last_is_a_quarter_of_the_steps_by_default(world, tmp_path):
    cases = [(1, 1), (4, 1), (5, 2), (8, 2), (30, 8)]
    for steps, last in cases:
        assert config(world, tmp_path, sampling_steps=steps).gradient_steps == last
