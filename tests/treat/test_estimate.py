"""The estimate against the same work on real tensors, and against itself extended."""

import functools
import json
import shutil

import pytest
import torch

from base_models.flux import Flux
from base_models.load import load_base
from core.config import load_config, presets
from core.counting import Cost, Tally
from core.errors import UserError
from detector.segformer import freeze
from detector.storage import load_detector
from tests.base_models.families import CASES
from tests.tiny import SIZE
from tests.treat.setting import build, config
from treat import estimate, phases
from treat.lora import add_lora
from treat.settings import Config
from treat.step import Chain
from treat.terms import RewardTerm, lock_to_base


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def counted_once():
    """Several tests count the same."""
    known, count = {}, phases.count

    def once(given, *numbers):
        key = given.model_dump_json(exclude={"out", "json_file"}), numbers
        if key not in known:
            known[key] = count(given, *numbers)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "count", once)
        patch.setattr(phases, "count", once)
        yield


def settings(world, **changes):
    given = {"batch": 2, "sampling_steps": 4, "last": 1, "lock_weight": 0.0, "rank": 4}
    return config(world, world / "run", **(given | changes))


def counted(world, **changes):
    return estimate.estimate(settings(world, **changes)).phases


KINDS = [
    {"last": 2},
    {"last": 2, "recompute": False},
    {"last": 1, "two_pass_decode": True, "lock_weight": 1.0},
    {"redraws": 2},
]


def compare(given, folder):
    """Operations are equal; so is memory above what stays, but for a sampler's own tables."""
    number = given.redraws or given.gradient_steps
    model = load_base(given.base)
    add_lora(model.network, given.rank, model.lora_targets(given.targets), 0)
    steps = 1 if given.redraws else number
    text = model.encode_prompts(["a prompt"] * given.batch)
    chain = Chain(model, model.schedule(steps, SIZE, SIZE), text, given.gamma)
    noise = model.noise([0, 1], SIZE, SIZE)
    detector, costs = freeze(load_detector(folder / "detector")), {}
    tally = Tally()
    for module in (model.network, model.vae, detector):
        for weights in module.state_dict().values():
            tally.add(weights)
    own = tally.live
    with tally:
        work = functools.partial(tally.work, costs)
        term = RewardTerm(**given.pixel_numbers, detector=detector)
        if given.lock_weight:
            with work(phases.LOCK):
                term.lock = lock_to_base(chain, noise, detector, **given.lock_numbers)
        phases.count_reward(given, chain, noise, term, number, work)
    (found,) = phases.count(given, number)
    stays = sum(size for name, size in found.resident.items() if "text_encoder" not in name)
    for name, cost in costs.items():
        assert found.phases[name].flops == cost.flops, name
        above = found.phases[name].peak - stays
        assert above == pytest.approx(cost.peak - own, rel=0.02, abs=100_000), name


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_as_with_real_tensors(world, changes):
    compare(settings(world, **changes), world)


@pytest.mark.parametrize(
    "case",
    ["sdxl", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sd", "sd3", "kolors"))],
)
def test_as_with_real_tensors_in_every_family(world, tmp_path, case):
    CASES[case].pipeline().save_pretrained(tmp_path)
    compare(settings(world, base=str(tmp_path)), world)


def test_held_to_the_base_the_offline_term_has_one_more_pass(world):
    images, base = (
        counted(world, offline_target=target)[phases.OFFLINE] for target in ("images", "base")
    )
    assert 1.2 * images.flops < base.flops < 1.6 * images.flops  # three passes' work, and a fourth


@pytest.mark.parametrize("changes", [{"recompute": False}, {"redraws": 3}], ids=str)
def test_linear_in_the_steps_that_learn(world, changes):
    given = settings(world, last=3, **changes)
    extended, (whole,) = estimate.estimate(given), phases.count(given, 3)
    for name in (phases.REWARD, phases.LEARNING):
        assert extended.phases[name].peak == pytest.approx(whole.phases[name].peak, rel=0.005)
        assert extended.phases[name].flops == pytest.approx(whole.phases[name].flops, rel=0.005)


@pytest.mark.parametrize("changes", [{"lock_weight": 1.0}, {"redraws": 2}], ids=str)
def test_counted_together_they_cost_what_each_does_alone(world, changes):
    given = settings(world, **changes)
    together = phases.count(given, 1, 2)
    for found, alone in zip(
        together, [*phases.count(given, 1), *phases.count(given, 2)], strict=True
    ):
        assert found.resident == alone.resident and list(found.phases) == list(alone.phases)
        for name, cost in alone.phases.items():
            assert found.phases[name].flops == cost.flops
            assert found.phases[name].peak == pytest.approx(cost.peak, abs=64)  # scalars
    assert together[0].phases != together[1].phases


def test_every_step_of_the_drawing_is_paid(world):
    one, six = (counted(world, sampling_steps=steps)[phases.DRAWING] for steps in (1, 6))
    assert six.flops == 6 * one.flops and six.peak == one.peak
    own = counted(world, sampling_steps=None)[phases.DRAWING]
    assert own == counted(world)[phases.DRAWING]  # four, of a base like schnell
    redrawn = counted(world, sampling_steps=6, redraws=2)[phases.DRAWING]
    assert redrawn.flops == 8 * one.flops


def test_what_saves_memory_saves_it_in_its_phase(world):
    plain = phases.count(settings(world), 1)[0].phases
    for change, phase in (
        ({"checkpoint_blocks": True}, phases.LEARNING),
        ({"checkpoint_decoder": True}, phases.REWARD),
        ({"batch": 1}, phases.OFFLINE),
    ):
        saved = phases.count(settings(world, **change), 1)[0].phases
        assert saved[phase].peak < plain[phase].peak, change
    kept = phases.count(settings(world, recompute=False), 1)[0].phases
    assert kept[phases.REWARD].peak > plain[phases.REWARD].peak
    assert kept[phases.LEARNING].flops < plain[phases.LEARNING].flops


def test_weights_are_not_needed(world, tmp_path):
    bare = tmp_path / "base"
    shutil.copytree(world / "base", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    found = estimate.estimate(settings(world, base=str(bare)))
    assert found == estimate.estimate(settings(world))
    model = load_base(str(world / "base"))
    held = list(model.network.parameters()) + list(model.network.buffers())
    own = sum(tensor.nbytes for tensor in held)
    add_lora(model.network, 4, model.lora_targets("attention+mlp"), 0)
    adapters = sum(w.nbytes for w in model.network.parameters() if w.requires_grad)
    assert found.resident["network"] == own + adapters
    assert found.resident["optimizer"] == pytest.approx(3 * adapters, abs=64)


def test_text_encoders_are_gone_when_the_updates_start(world, monkeypatch):
    alone = {"pixel_weight": 0.0, "detector": None, "second_detector": None}
    freed = counted(world, **alone)[phases.OPTIMIZER].peak
    monkeypatch.setattr(Flux, "drop_text_encoders", lambda self: None)
    found = estimate.estimate(settings(world, **alone, seed=1))  # which is counted anew
    encoders = sum(size for name, size in found.resident.items() if "text_encoder" in name)
    assert found.phases[phases.OPTIMIZER].peak - freed == encoders > 0


def test_the_control_needs_no_detector(world):
    found = counted(world, pixel_weight=0.0, detector=None)
    assert set(found) == {
        phases.PROMPTS, phases.REAL, phases.OFFLINE, phases.OPTIMIZER,
    }  # fmt: skip
    with pytest.raises(UserError, match="give --detector"):
        counted(world, detector=None)


def test_what_does_not_fit_is_refused_with_the_next_thing_to_try(world):
    peak = estimate.estimate(settings(world)).peak
    estimate.check_memory(settings(world), peak)
    with pytest.raises(UserError, match="try --base-dtype bfloat16"):
        estimate.check_memory(settings(world), peak - 1)
    halves = {"mixed_precision": "bf16", "base_dtype": "bfloat16"}
    with pytest.raises(UserError, match="needs .* [(]reward[)] .* try --checkpoint-decoder"):
        estimate.check_memory(settings(world, **halves), 1000)


def test_every_preset_is_read_and_named_for_its_device(world, monkeypatch):
    names = presets(Config)
    assert {name.split("-")[0] for name in names} <= set(estimate.PRESETS.values())
    own = ["--prompts", "p.txt", "--out", "o", "--detector", "d", "--offline", "f"]
    for name in names:
        found = load_config(Config, Config.presets / f"{name}.yaml", own)
        assert found.base_dtype == "bfloat16" and found.last
    flux = settings(world)
    sizes = {10: [], 17: ["flux-16gb"], 25: ["flux-24gb"], 150: ["flux-80gb"]}
    for size, named in sizes.items():
        assert estimate.preset_for(flux, int(size * 1e9)) == named
    with pytest.raises(UserError, match="or --config flux-16gb"):
        monkeypatch.setattr(estimate, "estimate", lambda config: Huge())
        estimate.check_memory(flux, int(17e9))


class Huge:
    peak = 10**12
    phases = {phases.LEARNING: Cost(10**12, 0)}


def test_only_a_new_run_is_checked(world, tmp_path, monkeypatch):
    class Tiny:
        total_memory = 1000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Tiny)
    fresh = settings(world).model_copy(update={"out": tmp_path})
    with pytest.raises(UserError, match="--no-check-memory"):
        estimate.check_fits(fresh, torch.device("cuda", 0))
    needed = estimate.estimate(fresh).peak
    monkeypatch.setattr(estimate, "machine_memory", lambda: needed)
    estimate.check_fits(fresh, torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # which share it
    with pytest.raises(UserError, match="--no-check-memory"):
        estimate.check_fits(fresh, torch.device("cpu"))
    monkeypatch.setattr(estimate, "machine_memory", lambda: 2**40)
    monkeypatch.setattr(estimate, "estimate", refuse)
    estimate.check_fits(fresh, torch.device("cpu"))  # so small that nothing is counted
    with pytest.raises(AssertionError, match="counted"):
        estimate.check_fits(fresh.model_copy(update={"batch": 2**16}), torch.device("cpu"))
    (tmp_path / "checkpoints").mkdir()
    estimate.check_fits(fresh, torch.device("cuda", 0))


def refuse(_config):
    raise AssertionError("it was counted")


def test_the_table_says_where_the_peak_is_and_the_file_says_it_all(world, tmp_path, capsys):
    given = settings(world).model_dump() | {"json_file": tmp_path / "figures.json"}
    config = estimate.Config(**given)
    estimate.main(config)
    shown, aside = capsys.readouterr()
    assert not aside  # nothing is loaded, so no bar says so
    assert "peak" in shown and phases.LEARNING in shown and "hours" in shown
    said = json.loads((tmp_path / "figures.json").read_text())
    found = estimate.estimate(config)
    assert said["resident"] == found.resident
    assert said["phases"][phases.REWARD] == list(found.phases[phases.REWARD])


def test_what_only_looks_takes_no_room_and_must_be_there(world, tmp_path):
    found = [
        phases.count(settings(world, second_detector=second), 1)[0]
        for second in (None, world / "second")
    ]
    assert found[0] == found[1] and "detector" in found[0].resident
    with pytest.raises(UserError, match="nowhere"):
        estimate.estimate(settings(world, second_detector=tmp_path / "nowhere"))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantised_network_is_small_and_learns_as_much(world, kind):
    plain, small = (phases.count(settings(world, quantise=bits), 1)[0] for bits in ("no", kind))
    saved = plain.resident["network"] - small.resident["network"]
    assert 0.3 * plain.resident["network"] < saved < 0.75 * plain.resident["network"]
    for phase in (phases.DRAWING, phases.REWARD, phases.LEARNING, phases.OFFLINE):
        assert small.phases[phase].flops == plain.phases[phase].flops
        assert plain.phases[phase].peak - small.phases[phase].peak == pytest.approx(saved, rel=0.1)


def test_a_base_in_half_precision_computes_in_it_alone(world):
    """Without autocast, in which a GPU has norms in float32."""
    half, cast = (
        [
            phases.count(settings(world, base_dtype=kind, mixed_precision=mixed), 1)[0].phases[
                phase
            ]
            for mixed in ("no", "bf16")
            for phase in (phases.DRAWING, phases.OFFLINE)
        ]
        for kind in ("bfloat16", "float32")
    )
    assert half[:2] == half[2:] and cast[:2] != cast[2:]


def test_bf16_weights_are_half(world):
    full, half = (
        phases.count(settings(world, base_dtype=kind), 1)[0].resident["vae"]
        for kind in ("float32", "bfloat16")
    )
    assert half == pytest.approx(full / 2, rel=0.01)
    assert torch.get_default_dtype() == torch.float32
