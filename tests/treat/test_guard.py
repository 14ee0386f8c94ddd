"""Collapse is planted in watched images and must be seen; healthy treatments go on."""

import json
import shutil
import sys

import pytest
import torch
from torch.nn import functional as F

from core import checkpoint
from core.errors import UserError
from core.storage import read_lines
from miniature.law import mixed
from miniature.paint import render
from tests.treat.setting import build, config, losses
from tests.treat.test_refresh import LABEL
from treat import guard, train
from treat.adapter import read_adapter
from treat.guard import FEWEST, PREFIX, WRONG_WAY, Guard, changes
from treat.watch import Watcher

LOOKS = 3
"""In so many a collapse must be seen."""


@pytest.fixture(scope="module")
def pool():
    generator = torch.Generator().manual_seed(0)
    scenes = mixed(200, generator, ["hand", "face", "bicycle", "sign", "scenery"])
    return torch.cat([render(part) for part in scenes.values()]).clamp(0, 1)


class Trial:
    """n images of a base, and looks at models that were treated from it."""

    def __init__(self, pool, seed, n=32):
        self.g, self.n = torch.Generator().manual_seed(seed), n
        self.base = pool[torch.randperm(len(pool), generator=self.g)[:n]]
        marked = self.lognormal(1.0, 0.03) * (torch.rand(n, generator=self.g) < 0.9)
        self.said = {
            "second": self.lognormal(0.7, 0.007),
            "selected": marked,
            "second_selected": marked * self.lognormal(0.5, 0.5),
        }

    def uniform(self, low, high):
        return low + (high - low) * torch.rand((), generator=self.g).item()

    def lognormal(self, spread, median=1.0):
        return median * (spread * torch.randn(self.n, generator=self.g)).exp()

    def healthy(self):
        """A patch of each image mended; all a little sharper or softer, paler or richer."""
        images = self.base.clone()
        for image in images:
            top, left = torch.randint(52, (2,), generator=self.g).tolist()
            other = self.base[torch.randint(self.n, (), generator=self.g)]
            image[:, top : top + 12, left : left + 12] = other[:, :12, :12]
        images = images.lerp(blurred(images, 1), self.uniform(-0.1, 0.1))
        images = images.lerp(grey(images), self.uniform(-0.05, 0.05)) + self.uniform(-0.02, 0.02)
        images = images + 0.005 * torch.randn(images.shape, generator=self.g)
        left = self.uniform(0.4, 1.0) * self.lognormal(0.3)  # of what was marked; both maps see it
        return images, {
            "second": self.said["second"] * self.uniform(0.6, 1.05) * self.lognormal(0.2),
            "selected": self.said["selected"] * left * self.lognormal(0.2),
            "second_selected": self.said["second_selected"] * left * self.lognormal(0.2),
        }

    def changes(self, images, said):
        pairs = {name: (found, self.said[name]) for name, found in said.items()}
        return changes(images.clamp(0, 1), self.base, pairs)


def blurred(images, radius):
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, 1)


def grey(images):
    return images.mean(1, keepdim=True).expand_as(images)


def blur(trial, images, said):
    return images.lerp(blurred(images, 2), trial.uniform(0.5, 1)), said


def grey_out(trial, images, said):
    return images.lerp(torch.full_like(images, 0.5), trial.uniform(0.4, 1)), said


def mixing(trial, images, said):
    """All images become mixtures, of which there are few."""
    few = images[torch.randint(4, (32,), generator=trial.g)]
    return images.lerp(few, trial.uniform(0.5, 1)), said


def garish(trial, images, said):
    return grey(images).lerp(images, trial.uniform(1.6, 2.5)), said


def noise(trial, images, said):
    spread = trial.uniform(0.05, 0.2)
    return images + spread * torch.randn(images.shape, generator=trial.g), said


def contrast_hack(trial, images, said):
    """What a model does whose detector minds soft edges."""
    return images + trial.uniform(0.7, 2) * (images - blurred(images, 1)), said


def deaf(trial, images, said):
    """Other prompts' images: as good as the base's, each in the wrong place."""
    order = torch.randperm(32, generator=trial.g)
    moved = torch.rand(32, generator=trial.g) < trial.uniform(0.7, 1)
    return torch.where(moved[:, None, None, None], images[order], images), said


def blind_spot(trial, images, said):
    """The detector that teaches sees nothing any more, the second one more than before."""
    return images, {**said, "second": said["second"] * trial.uniform(2.5, 5)}


def deceived(trial, images, said):
    """The loss selects next to nothing any more, and the second map as much as ever."""
    nothing = trial.said["selected"] * trial.uniform(0, 0.1) * trial.lognormal(0.5)
    still = trial.said["second_selected"] * trial.uniform(0.9, 1.1) * trial.lognormal(0.2)
    return images, {**said, "selected": nothing, "second_selected": still}


def worsening(trial, images, said):
    """The loss selects more than at the base: what should mend, breaks."""
    more = trial.said["selected"] * trial.uniform(4, 8) * trial.lognormal(0.3)
    return images, {**said, "selected": more}


COLLAPSES = [blur, grey_out, mixing, garish, noise, contrast_hack, deaf, blind_spot]
COLLAPSES += [deceived, worsening]


def seen(pool, collapse, seed):
    trial, watch = Trial(pool, seed), Guard()
    for _ in range(2):
        assert not watch.look(trial.changes(*trial.healthy()))
    looks = (trial.changes(*collapse(trial, *trial.healthy())) for _ in range(LOOKS))
    return any(watch.look(figures) for figures in looks)


def alarmed(pool, seed, looks=50, n=32):
    trial, watch = Trial(pool, seed, n), Guard()
    return any(watch.look(trial.changes(*trial.healthy())) for _ in range(looks))


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_collapse_is_seen_within_three_looks(pool, collapse):
    assert sum(seen(pool, collapse, seed) for seed in range(10)) == 10


@pytest.mark.parametrize("n", [FEWEST, 32])
def test_healthy_runs_are_not_stopped(pool, n):
    assert sum(alarmed(pool, seed, looks=20, n=n) for seed in range(10)) == 0


@pytest.mark.trial
def test_each_collapse_forty_times_and_three_hundred_healthy_runs(pool):
    found = {c.__name__: sum(seen(pool, c, 100 + i) for i in range(40)) for c in COLLAPSES}
    false = sum(alarmed(pool, 1000 + i) for i in range(300))
    enough = sum(found.values()) >= 0.95 * 40 * len(COLLAPSES)
    assert enough and min(found.values()) >= 0.9 * 40, found
    assert false <= 3


def test_one_look_alone_is_no_alarm():
    watch = Guard(tolerance=0.5)
    assert watch.look({PREFIX + "sharpness": -0.6, PREFIX + "contrast": 0.1}) == []
    assert watch.look({PREFIX + "sharpness": 0.1, PREFIX + "contrast": 0.7}) == []
    assert watch.look({PREFIX + "sharpness": -0.4, PREFIX + "contrast": 0.7}) == ["contrast"]
    assert watch.look({}) == []  # nothing measured, nothing said


def test_each_meter_has_its_wrong_way():
    worse = {"variety": [-1], "likeness": [-1], "image_reward": [-1], "second": [1]}
    worse |= {"selected": [1], "blind": [1], "pace": [1]}
    for name in WRONG_WAY:
        for way in (-1, 1):
            watch = Guard()
            looks = [watch.look({PREFIX + name: 2.0 * way}) for _ in range(2)]
            assert looks == [[], [name] if way in worse.get(name, [-1, 1]) else []]
    broken = Guard()
    assert [broken.look({PREFIX + "second": float("nan")}) for _ in range(2)] == [[], ["second"]]


def test_images_that_are_all_alike_may_still_differ_a_little():
    grey = torch.full((20, 3, 16, 16), 0.5)
    moved = grey + 0.002 * torch.linspace(0, 1, 16)
    assert abs(changes(moved, grey, {})[PREFIX + "contrast"]) < 0.3


def test_what_may_be_chance_is_no_change():
    spread = torch.tensor(1.0)
    moved = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    assert guard.sure_change(moved, spread) == 0
    assert guard.sure_change(moved * 0.01 + 1, spread) == pytest.approx(1.0, abs=0.02)
    assert guard.sure_change(moved * 0.01 - 1, spread * 2) == pytest.approx(-0.5, abs=0.02)
    assert changes(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), {}) == {}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = build(tmp_path_factory.mktemp("world"))
    (folder / "prompts.txt").write_text("".join(f"a thing {i}\n" for i in range(100)))
    return folder


def looked(world, out, **changes):
    """A look after every update, at all of its images at once."""
    given = {"watch_every": 1, "watch_images": FEWEST, "batch": FEWEST, "sampling_steps": 1}
    return config(world, out, **(given | {"lock_weight": 0} | changes))


def ruin(world, out, **changes):
    """A rate at which nothing stays as it was."""
    return looked(world, out, **{"learning_rate": 3.0, "steps": 4, "offline_rise": 1e9, **changes})


def warnings(out):
    return [line["message"] for line in read_lines(out / "events.jsonl") if line["level"] == "warn"]


@pytest.fixture(scope="module")
def ruined(world, tmp_path_factory):
    """A run that a collapse ended."""
    out = tmp_path_factory.mktemp("ruined") / "run"
    with pytest.raises(UserError, match="no step worth keeping.*--guard warn goes on all the same"):
        train.main(ruin(world, out))
    return out


def test_a_collapse_stops_the_run(world, ruined, tmp_path):
    out = shutil.copytree(ruined, tmp_path / "run")
    with pytest.raises(UserError, match="no step worth keeping"):
        train.main(ruin(world, out))  # the same command again: nothing more is learnt
    assert 2 <= max(losses(ruined)) == max(losses(out)) < 4
    assert any("collapse after" in told for told in warnings(ruined))


def test_a_stopped_run_goes_on_if_it_is_told_to(world, ruined, tmp_path):
    out = shutil.copytree(ruined, tmp_path / "run")
    assert train.main(ruin(world, out, guard="warn")) == 0
    assert max(losses(ruined)) < max(losses(out)) == 4


def test_who_only_wants_to_be_told_is(world, tmp_path):
    for guarded in ("warn", "off"):
        out = tmp_path / guarded
        assert train.main(ruin(world, out, guard=guarded)) == 0
        assert max(losses(out)) == 4
        assert any("collapse after" in told for told in warnings(out)) == (guarded == "warn")


@pytest.mark.parametrize("second", [True, False])
def test_the_step_before_the_collapse_is_the_one_to_export(world, tmp_path, monkeypatch, second):
    from treat import watch

    far = iter([0.0, 0.1, -0.7, -0.8])
    monkeypatch.setattr(watch, "changes", lambda *_: {PREFIX + "sharpness": next(far)})
    own = {"second_detector": world / "second"} if second else {"second_detector": None}
    settings = ruin(world, tmp_path, learning_rate=1e-3, steps=5, **own)
    assert train.main(settings) == 0
    assert max(losses(tmp_path)) == 4
    assert read_adapter(tmp_path).step in ((1, 2) if second else (2,))


def test_the_last_sound_step_survives_a_resume(world, tmp_path, monkeypatch):
    from treat import watch

    far = iter([0.0, -0.7, -0.8])
    monkeypatch.setattr(watch, "changes", lambda *_: {PREFIX + "sharpness": next(far)})
    settings = ruin(world, tmp_path, learning_rate=1e-3, second_detector=None, steps=2)
    assert train.main(settings) == 0  # ends between the two looks of the alarm
    assert train.main(settings.model_copy(update={"steps": 5})) == 0
    assert max(losses(tmp_path)) == 3
    assert read_adapter(tmp_path).step == 1


@pytest.mark.parametrize("guarded", ["stop", "warn"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_that_was_never_sound(world, tmp_path, monkeypatch, guarded, steps):
    """It fails, unless it was to go on; and nothing of it is exported or judged by itself."""
    from treat import watch

    monkeypatch.setattr(watch, "changes", lambda *_: {PREFIX + "contrast": 2.0})
    settings = ruin(world, tmp_path, guard=guarded, steps=steps)
    if guarded == "stop":
        with pytest.raises(UserError, match="no look at the watched images was sound"):
            train.main(settings)
    else:
        assert train.main(settings) == 0
    ended = max(losses(tmp_path))
    assert ended == (2 if (guarded, steps) == ("stop", 4) else steps)
    assert json.loads((tmp_path / "summary.json").read_text())["best_step"] is None
    assert any("no step is the best" in told for told in warnings(tmp_path))
    with pytest.raises(UserError, match="no look at its images was sound.* say --step last"):
        read_adapter(tmp_path)
    assert read_adapter(tmp_path, "last").step == ended
    (tmp_path / "summary.json").unlink()
    with pytest.raises(UserError, match="no best step yet: finish the run"):  # control
        read_adapter(tmp_path)


def test_a_guard_that_cannot_see_says_so_once(world, tmp_path):
    told = f"it needs {FEWEST} watched images"
    for images in (FEWEST - 1, FEWEST):
        out = tmp_path / str(images)
        settings = looked(world, out, watch_images=images, steps=2)
        assert train.main(settings) == 0
        assert sum(told in message for message in warnings(out)) == (images < FEWEST)


def test_a_look_whose_pictures_were_removed_is_no_end(world, tmp_path):
    settings = looked(world, tmp_path, steps=1)
    assert train.main(settings) == 0
    for path in (tmp_path / "watched/step-00000000").glob("*.png"):
        path.unlink()
    assert train.main(settings.model_copy(update={"steps": 2})) == 0
    assert any("the guard sees nothing" in message for message in warnings(tmp_path))


def test_a_last_look_that_is_amiss_is_not_exported(world, tmp_path, monkeypatch):
    from treat import watch

    far = iter([0.0, 0.1, -0.7])
    monkeypatch.setattr(watch, "changes", lambda *_: {PREFIX + "sharpness": next(far)})
    settings = ruin(world, tmp_path, learning_rate=1e-3, second_detector=None, steps=3)
    assert train.main(settings) == 0
    assert read_adapter(tmp_path).step == 2
    told = [line["message"] for line in read_lines(tmp_path / "events.jsonl")]
    assert "the best is step 2" in told[-1]


def test_a_detector_that_flags_what_is_real_is_warned_of(world, tmp_path, monkeypatch):
    for share in (0.0, 1.0):
        monkeypatch.setattr(Watcher, "real_frequency", lambda self, share=share: share)
        out = tmp_path / str(share)
        train.main(config(world, out, steps=1))
        drawn = losses(out)[0]["reward_frequency"]
        assert any("cannot tell them apart" in told for told in warnings(out)) == (share >= drawn)


def test_the_detector_is_asked_what_it_flags_before_it_teaches(world, tmp_path):
    train.main(config(world, tmp_path, steps=1))
    told = [line["message"] for line in read_lines(tmp_path / "events.jsonl")]
    assert any("of the base's images" in message and "of real ones" in message for message in told)


def linear(rate, steps, all_steps):
    """Sum of a rate that falls to zero, up to a step."""
    return rate * (steps - steps * (steps - 1) / 2 / all_steps)


RUINED = (0.900, 1.542, 2.089, 2.710, 3.334, 3.925, 4.452, 5.330, 6.241, 7.048, 7.954, 8.511)
"""What the adapters of `benchmarks.endurance`'s bare run added, every 20 of 800 updates at a rate
of 7e-4; from 140 on its images were unlike the base's. The others: healthy runs of the healing
table, by their checkpoints."""
PACES = {
    "bare": [(linear(7e-4, 20 * (i + 1), 800), moved) for i, moved in enumerate(RUINED)],
    "adapter": [(linear(7e-4, n, 80), m) for n, m in [(40, 1.517), (60, 1.612), (80, 1.627)]],
    "ceiling": [(linear(1e-3, n, 80), m) for n, m in [(60, 2.045), (80, 2.066)]],
    "paper": [(1e-4 * n, m) for n, m in [(60, 0.495), (80, 0.636)]],
    "long": [(linear(7e-4, n, 800), m) for n, m in [(560, 4.341), (780, 4.547), (800, 4.548)]],
}


@pytest.mark.parametrize("name", PACES)
def test_adapters_that_run_away_are_seen_in_recorded_runs(name):
    watch, alarms = Guard(), []
    for spent, moved in PACES[name]:
        change = watch.pace.change(moved, spent)
        alarms += watch.look({PREFIX + "pace": change})
    assert bool(alarms) == (name == "bare")


def test_pace_by_hand():
    pace = guard.Pace()
    assert pace.change(0.0, 0.0) is None  # the base
    assert pace.change(0.0, 1.0) is None  # nothing was carried anywhere: no first pace
    looks = [pace.change(moved, spent) for moved, spent in [(2.0, 2.0), (3.0, 3.0), (6.0, 4.0)]]
    assert looks == pytest.approx([0, -0.5 / 0.25, 0.5 / 0.25])
    assert pace.change(7.0, 4.0) is None  # all updates were skipped


def test_a_map_that_goes_blind_is_told_from_images_that_heal():
    first = torch.linspace(0.01, 0.1, 20)
    second = first.flip(0)
    healed = guard.blindness((0.1 * first, first), (0.1 * second, second))
    told = guard.blindness((0.1 * first, first), (1.1 * second, second))
    assert (healed, told) == pytest.approx((0, 1.0 / 0.75), abs=1e-5)
    few = second * (torch.arange(20) < 7)  # the second never saw enough to say that it still does
    assert guard.blindness((0 * first, first), (few, few)) == 0
    assert guard.blindness((0 * first, first), (second * (torch.arange(20) < 8),) * 2) > 1
    some = torch.where(torch.arange(20) % 4 == 0, 3.0, 0.2)  # of which the mean says little
    assert guard.blindness((0.5 * first, first), (some * second, second)) == 0


def test_of_looks_that_are_alike_the_last_is_exported(world, tmp_path):
    """Not the lowest score, which is the first of equals."""
    assert train.main(looked(world, tmp_path, steps=3, learning_rate=1e-12)) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["best_step"] == 3
    state = checkpoint.load_newest(tmp_path / "checkpoints").state["best"]
    assert len(state["each"]) == FEWEST and state["step"] == 3


def test_the_share_of_selected_pixels_and_the_pace_are_watched(world, tmp_path):
    names = ["selected", "change_selected", "change_blind", "change_pace", "weights_moved"]
    settings = looked(world, tmp_path, steps=2, guard="warn")
    assert train.main(settings) == 0
    figures = losses(tmp_path)
    assert figures[0]["weights_moved"] == 0 < figures[0]["selected"] <= 1
    assert all(name in figures[step] for name in names for step in (1, 2))
    assert figures[1]["change_pace"] == 0 != figures[2]["change_pace"]


def test_a_refreshed_detector_looks_at_the_base_anew(world, tmp_path, monkeypatch):
    from treat import watch

    shares = []
    monkeypatch.setattr(watch, "changes", lambda *given: shares.append(given[2]["selected"]) or {})
    numbers = {"refresh_every": 2, "refresh_images": 2, "refresh_steps": 2, "refresh_rate": 0.1}
    numbers |= {"annotator": (sys.executable, "-c", LABEL), "steps": 3, "threshold": 0.3}
    assert train.main(looked(world, tmp_path, **numbers)) == 0
    first, second, third = (base for _, base in shares)
    assert torch.equal(first, second) and first.any()
    assert not torch.equal(second, third)  # refreshed after step 2


def test_high_frequency_by_hand():
    across = torch.arange(16.0)
    slow, fast = (torch.cos(2 * torch.pi * f * across / 16).expand(1, 16, 16) for f in (2, 6))
    assert guard.high_frequency(slow).item() == pytest.approx(0, abs=1e-6)
    assert guard.high_frequency(fast + 3).item() == pytest.approx(1, abs=1e-5)
    assert guard.high_frequency(slow + fast).item() == pytest.approx(0.5, abs=1e-5)
