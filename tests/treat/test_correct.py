"""The real programs on tiny bases: pairs, masks, curves, resume, calibration and refusals."""

import json
import shutil
import time

import numpy as np
import pytest
import torch

from base_models.load import load_base
from base_models.trajectory import Level, Trajectory
from core.errors import UserError
from core.image_files import list_images
from core.images import read_images, write_image
from core.run import PAUSED, Run
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.wishes import ask
from detector import combine
from detector.score_dynamics import Window
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector
from tests.tiny import SIZE, tiny_pipeline
from tests.tiny.unconditional import tiny_ddpm, tiny_ldm
from treat import calibrate, correct, correct_draw
from treat.correctors.acceleration import drawing, mean_curves, region_curves
from treat.correctors.calibration import read_calibration
from treat.correctors.opening import open_corrector


def bright(images, prompts):
    """A judge that anybody can check."""
    return (images.mean(dim=1, keepdim=True) > 0.5).float()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two bases without prompts and a detector that sees something."""
    folder = tmp_path_factory.mktemp("world")
    tiny_ddpm(sample_size=SIZE).save_pretrained(folder / "ddpm")
    tiny_ldm(vq=False).save_pretrained(folder / "ldm")
    detector = SegformerDetector(SegformerConfig(variant="nano", prior=0.3), seed=1)
    head = detector.network.decode_head.classifier.weight
    head.data = torch.randn(head.shape, generator=torch.Generator().manual_seed(1)) * 0.5
    save_detector(detector, folder / "detector", {})
    return folder


def settings(world, out, **changes):
    few = {"n": 3, "batch": 2, "sampling_steps": 10, "height": SIZE, "width": SIZE, "shown": 2}
    return correct.Config(**{"base": str(world / "ddpm"), "out": out, **few, **changes})


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """A finished correction, its settings and its folder."""
    config = settings(world, tmp_path_factory.mktemp("done") / "run", set=("gamma=0.5",))
    assert correct.main(config, bright) is None
    return config, config.out


def test_pairs_masks_and_figures_are_there(done):
    config, out = done
    before, after = (read_images(list_images(out / "images" / n)) for n in ("base", "asced"))
    masks = read_images(list_images(out / "masks"))[:, :1] > 0.5
    assert len(before) == len(after) == len(masks) == 3
    summary = json.loads((out / "summary.json").read_text())
    assert summary["area_changed"] == pytest.approx(masks.float().mean().item(), abs=1e-3)
    area = float(bright(before, []).mean())
    assert summary["arms"]["base"]["artifact_area"] == pytest.approx(area, abs=1e-6)
    assert "asced - base" in summary["differences"] and summary["relative_cost"] > 0
    assert summary["window"] == {"t_c": 0.48, "t_d": 1.0}
    changed = [bool(m.any()) for m in masks]
    for was, now, touched in zip(before, after, changed, strict=True):
        assert torch.equal(was, now) != touched  # the same seed: what was not corrected is the same
    assert summary["found_by"] == "score dynamics, variant paper"
    assert any(changed) and summary["images_changed"] == pytest.approx(np.mean(changed))
    page = (out / "report.html").read_text()
    assert "asced (score dynamics, variant paper)" in page
    assert "Score acceleration" in page and "Mutation" in page and "itself" not in page
    assert (out / "acceleration.svg").read_text() in page
    assert (out / "sheet.png").stat().st_size > 1000


def test_the_same_command_draws_only_what_is_missing(done):
    config, out = done
    kept, lost = out / "images/asced/000000.png", out / "images/asced/000002.png"
    content, then = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    correct.main(config, bright)
    assert lost.read_bytes() == content and kept.stat().st_mtime_ns == then
    with pytest.raises(UserError, match="other settings"):
        correct.main(config.model_copy(update={"set": ("gamma=0.7",)}), bright)


def test_another_base_of_the_same_name_is_refused(world, tmp_path):
    shutil.copytree(world / "ddpm", tmp_path / "ddpm")
    config = settings(world, tmp_path / "run", base=str(tmp_path / "ddpm"), n=2)
    assert correct.main(config, bright) is None
    path = tmp_path / "ddpm/scheduler/scheduler_config.json"
    former = path.read_text()
    path.write_text(json.dumps({**json.loads(former), "beta_start": 0.01}))
    with pytest.raises(UserError, match="other contents of --base than lie there now"):
        correct.main(config, bright)
    path.write_text(former)
    assert correct.main(config, bright) is None  # control


def test_a_stopped_run_says_so_and_goes_on_to_the_same_images(world, done, tmp_path, monkeypatch):
    config, out = done
    stopped = config.model_copy(update={"out": tmp_path / "run"})
    looks = iter([False, True])
    monkeypatch.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
    assert correct.main(stopped, bright) == PAUSED
    assert not (tmp_path / "run/summary.json").exists()
    assert [line["step"] for line in lines(tmp_path / "run")] == [2]
    monkeypatch.setattr(Run, "interrupted", property(lambda run: False))
    assert correct.main(stopped, bright) is None
    for arm in ("base", "asced"):
        for path in list_images(out / "images" / arm):
            again = tmp_path / "run/images" / arm / path.name
            assert again.read_bytes() == path.read_bytes()
    assert [line["step"] for line in lines(tmp_path / "run")] == [2, 3]


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_a_pair_and_says_what_it_cost(done):
    config, out = done
    told = lines(out)
    assert [line["step"] for line in told] == [2, 3]
    assert all(line["seconds_corrected"] > 0 < line["seconds_plain"] for line in told)
    assert all(10e6 < line["host_memory"] < 1e12 for line in told)
    summary = json.loads((out / "summary.json").read_text())
    mean = (2 * told[0]["area_changed"] + told[1]["area_changed"]) / 3
    assert mean == pytest.approx(summary["area_changed"])


def test_a_sheet_of_the_first_pairs_when_it_is_asked_for(world, tmp_path, monkeypatch):
    log = Run.log

    def logged(run, step, **figures):
        log(run, step, **figures)
        assert step != 2 or ask(run.folder, "sample")

    monkeypatch.setattr(Run, "log", logged)
    out = tmp_path / "run"
    assert correct.main(settings(world, out, shown=3, n=4), bright) is None
    sheets = read_images([out / "pictures/step-00000002.png"])
    whole = read_images([out / "pictures/step-00000004.png"])
    assert whole.shape[-2] > sheets.shape[-2]  # two pairs, then three
    assert (out / "sheet.png").read_bytes() == (out / "pictures/step-00000004.png").read_bytes()
    assert "drew after step 2, as asked" in (out / "events.jsonl").read_text()


def test_a_detector_leads_on_latents_and_judges_itself_only_with_a_warning(world, tmp_path):
    config = settings(
        world, tmp_path / "run", base=str(world / "ldm"), corrector="guide",
        detector=str(world / "detector"), set=("threshold=0.2",), n=2,
    )  # fmt: skip
    assert correct.main(config) is None
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert "detector itself" in summary["judge"] and summary["images_changed"] == 1
    events = (tmp_path / "run/events.jsonl").read_text()
    assert "also judges" in events and "changed no image" not in events
    assert summary["found_by"] == f"the detector {world / 'detector'}"


def test_whoever_leads_is_known_under_any_name(world, tmp_path):
    own, other = world / "detector", tmp_path / "other"
    save_detector(SegformerDetector(SegformerConfig(variant="nano"), seed=2), other, {})
    combine.main(combine.Config(detectors=(own, other), out=tmp_path / "both"))
    shutil.copytree(own, tmp_path / "copy")
    assert correct.leads_itself(own, {}) and correct.leads_itself(own, {"x": tmp_path / "copy"})
    assert correct.leads_itself(own, {"x": tmp_path / "both"})
    assert correct.leads_itself(tmp_path / "both", {"x": other})
    assert not correct.leads_itself(own, {"x": other, "y": own})  # the first one judges


def test_dynamics_without_a_calibration_are_warned_of(done, world):
    said = (done[1] / "events.jsonl").read_text()
    assert "without a calibration" in said and "diffdoctor calibrate" in said


def test_a_run_that_changed_nothing_says_so(world, tmp_path):
    """One in which nobody has to find anything: no change of the score is beyond the bound."""
    out = tmp_path / "run"
    used = settings(world, out, corrector="score_clipping", set=("bound=1e6",), n=2)
    assert correct.main(used, bright) is None
    said = (out / "events.jsonl").read_text()
    assert 'score_clipping changed no image: look at --set"' in said
    assert "without a calibration" not in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images_changed"] == 0 and summary["found_by"] is None
    page = (out / "report.html").read_text()
    assert "with score_clipping;" in page and "score_dynamics" not in page


def test_the_cost_is_of_neither_arms_first_drawing(world, tmp_path, monkeypatch):
    """A clock that only drawing moves: the first by 100 s, every other by 1 s, corrected or not."""
    now, drawn = [0.0], []
    draw_corrected = correct_draw.draw_corrected

    def slow_at_first(chain, noise, seeds, corrector):
        now[0] += 1 if drawn else 100
        drawn.append((len(seeds), corrector is not None))
        return draw_corrected(chain, noise, seeds, corrector)

    monkeypatch.setattr(correct_draw, "draw_corrected", slow_at_first)
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: now[0])
    assert correct.main(settings(world, tmp_path / "run", n=4), bright) is None
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["seconds_an_image"] == {"base": 0.5, "asced": 0.5}  # two at once
    assert summary["relative_cost"] == 1
    assert drawn[-4:] == [(2, False), (2, True), (2, True), (2, False)]  # in turns


def test_what_cannot_be_done_is_refused_before_anything_is_drawn(world, tmp_path):
    out, folder = tmp_path / "run", str(world / "detector")
    for given, says in (
        ({"corrector": "sargd"}, "give --detector FOLDER"),
        ({"sampling_steps": 4}, "give more steps"),
        ({"set": ("gama=1",)}, "it has gamma"),
        ({"corrector": "guide", "calibration": tmp_path / "a.json"}, "is for --corrector asced"),
        ({"calibration": tmp_path / "a.json"}, "there is no calibration .*a.json"),
        ({"height": SIZE + 1}, "divide by 2"),
        ({"corrector": "guide", "set": ("start=5",)}, "start of 'guide' is .* at most 1"),
        ({"corrector": "bayes", "detector": folder}, "no part in 'bayes' .*: leave it out"),
        ({"corrector": "score_clipping", "detector": folder}, "no part in 'score_clipping'"),
        ({"corrector": "score_clipping", "detector": "bayes"}, "no part in 'score_clipping'"),
        ({"corrector": "guide", "detector": "bayes"}, "give --detector FOLDER"),
        ({"real": tmp_path}, "leave it out, or --detector bayes"),
        ({"corrector": "bayes", "variant": "code"}, "has no --variant code"),
        ({"detector": folder, "calibration": tmp_path / "a.json"}, "is of score dynamics"),
        ({"variant": "code", "set": ("gamma=0.5",)}, "gamma has no part in variant code"),
        ({"set": ("shake=0.5",)}, "shake has no part in variant paper"),
        ({"calibration": tmp_path / "a.json", "set": ("t_c=0.3",)}, "was found for t_c 0.48"),
        ({"detector": "score_dynamic"}, "score_dynamic is no folder; did you mean score_dynamics"),
        ({"prompts": tmp_path / "prompts.txt"}, "reads no prompts: leave --prompts out"),
    ):
        with pytest.raises(UserError, match=says):
            correct.main(settings(world, out, **given), bright)
    with pytest.raises(UserError, match="nobody judges.*--judges"):
        correct.main(settings(world, out))
    tiny_pipeline().save_pretrained(tmp_path / "flux")
    with pytest.raises(UserError, match="give --prompts FILE"):
        correct.main(settings(world, out, base=str(tmp_path / "flux")), bright)
    assert not out.exists()


def test_a_calibration_is_found_and_used(world, tmp_path):
    config = calibrate.Config(
        base=str(world / "ddpm"), out=tmp_path / "new/asced.json", n=3, batch=2, sampling_steps=10,
        height=SIZE, width=SIZE, t_d=(1.0, 0.7), factor=(1.0, 2.0), gamma=(0.5, 1.0),
    )  # fmt: skip
    calibrate.main(config, bright)
    found = read_calibration(config.out, config.base + "/", 10, "paper")
    assert len(found.bank) == 9 and all(value > 0 for value in found.bank)
    for name in ("t_d", "factor", "gamma"):
        with pytest.raises(ValueError, match="at least 1 item"):
            calibrate.Config.model_validate(config.model_dump() | {name: ()})
    overlaps = [one for one in found.tried if "iou" in one]
    best = max(overlaps, key=lambda one: one["iou"])
    assert len(overlaps) == 4 and (found.t_d, found.factor) == (best["t_d"], best["factor"])
    areas = {one["gamma"]: one["area"] for one in found.tried if "area" in one}
    assert set(areas) == {None, 0.5, 1.0}
    kept = {one["gamma"]: one["variety"] for one in found.tried if "area" in one}
    varied = [g for g in (0.5, 1.0) if kept[g] >= 0.8 * kept[None]]
    if varied:
        assert areas[found.gamma] == min(areas[g] for g in varied)
    assert found.helps == (found.gamma in varied and areas[found.gamma] < areas[None])
    assert (found.seed, found.height, found.width) == (1, SIZE, SIZE)
    used = settings(world, tmp_path / "run", calibration=config.out, set=("gamma=0.9",))
    opened = open_corrector(correct.wanted(used, (SIZE, SIZE)), None)
    corrector = opened.make(model_of(used))
    assert opened.window.t_d == found.t_d
    assert (corrector.gamma, corrector.t_d) == (0.9, found.t_d)  # what is said goes first
    assert (corrector.find.bank, corrector.find.factor) == (found.bank, found.factor)
    moved, other = tmp_path / "moved", tmp_path / "other"
    for copy in (moved, other):
        shutil.copytree(config.base, copy)
    assert read_calibration(config.out, str(moved), 10, "paper") == found
    named = json.loads(config.out.read_text()) | {"digest": None}  # as an earlier version wrote it
    (tmp_path / "named.json").write_text(json.dumps(named))
    read_calibration(tmp_path / "named.json", config.base + "/", 10, "paper")
    with pytest.raises(UserError, match="knew it by its name"):
        read_calibration(tmp_path / "named.json", str(moved), 10, "paper")
    weights = next(other.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    for wrong in ((str(other), 10, "paper"), (config.base, 25, "paper"), (config.base, 10, "code")):
        with pytest.raises(UserError, match="calibrate again"):
            read_calibration(config.out, *wrong)
    wide = settings(world, tmp_path / "wide", calibration=config.out, width=2 * SIZE)
    with pytest.raises(UserError, match="pixels, not .* calibrate again"):
        open_corrector(correct.wanted(wide, (SIZE, 2 * SIZE)), None)
    seen = settings(world, tmp_path / "seen", calibration=config.out, seed=1, n=2)
    assert correct.main(seen, bright) is None
    assert "calibrated on seed 1 too" in (tmp_path / "seen/events.jsonl").read_text()
    config.out.write_text("{}")
    with pytest.raises(UserError, match="is no calibration"):
        read_calibration(config.out, config.base, 10, "paper")


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("helps", [True, False])
def test_a_correction_that_does_not_help_is_not_recommended(
    world, tmp_path, capsys, variant, helps
):
    """The judge sees a flaw in every image but (or only) the plain ones, drawn and judged first."""
    judged = []

    def judge(images, prompts):
        judged.append(len(images))
        plain = sum(judged) <= 3
        return torch.full_like(images[:, :1], 1.0 if plain == helps else 0.0)

    few = {"n": 3, "batch": 3, "sampling_steps": 10, "height": SIZE, "width": SIZE}
    tried = {"t_d": (1.0,), "factor": (1.0,), "gamma": (0.5, 1.0), "variant": variant}
    out = tmp_path / "asced.json"
    calibrate.main(calibrate.Config(base=str(world / "ddpm"), out=out, **few, **tried), judge)
    found = read_calibration(out, str(world / "ddpm"), 10, variant)
    assert len(judged) == (3 if variant == "paper" else 2) and found.helps == helps
    assert ("no correction is recommended" in capsys.readouterr().out) != helps
    used = settings(world, tmp_path / "run", calibration=out, variant=variant, n=2)
    assert correct.main(used, bright) is None
    events = tmp_path / "run/events.jsonl"
    said = events.read_text() if events.exists() else ""
    assert ("recommends no correction" in said) != helps


def model_of(config):
    return load_base(config.base)


def test_bayes_fits_on_a_folder_of_real_images(world, tmp_path):
    (tmp_path / "real").mkdir()
    for i in range(2):
        image = torch.rand(3, SIZE + 8, SIZE, generator=torch.Generator().manual_seed(i))
        write_image(tmp_path / f"real/{i}.png", image)
    config = settings(
        world, tmp_path / "run", corrector="bayes", real=tmp_path / "real",
        set=("samples=2", "every=3"), n=2,
    )  # fmt: skip
    assert correct.main(config, bright) is None
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert 0 < summary["area_changed"] < 0.6
    given = config.model_dump() | {"corrector": "asced", "detector": "bayes", "set": ()}
    again = correct.Config.model_validate(given | {"out": tmp_path / "asced"})
    assert correct.main(again, bright) is None  # its map, another's correction
    changed = json.loads((tmp_path / "asced/summary.json").read_text())["area_changed"]
    assert 0 < changed < 0.6
    with pytest.raises(UserError, match="nobody judges"):  # a variance judges nothing
        correct.main(again.model_copy(update={"out": tmp_path / "unjudged"}))
    with ShardWriter(tmp_path / "store") as writer:
        for i in range(2):
            level = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
            writer.write(Sample(f"{i}", level, None, Record(key=f"{i}", source="real")))
    stored = again.model_copy(update={"out": tmp_path / "stored", "real": tmp_path / "store"})
    assert correct.main(stored, bright) is None
    for given in ({"corrector": "bayes"}, {"detector": "bayes"}):
        with pytest.raises(UserError, match="give --real FOLDER"):
            correct.main(settings(world, tmp_path / "other", **given), bright)


def walked(rises_at: int) -> Trajectory:
    """x0-hat moves by 1 everywhere at every step, and by 5 within a square at one step."""
    noiseless = Trajectory([Level(1.0, 0.0)] * 11)
    clean, place = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    place[..., :4, :4] = 1
    for i in range(10):
        clean = clean + 1 + (4 * place if i == rises_at else 0)
        noiseless.add(torch.zeros_like(clean), clean)
    return noiseless


def test_curves_rise_and_fall_where_the_score_does():
    maps = torch.zeros(1, 1, 16, 16)
    maps[..., :8, :8] = 1
    (curve,) = region_curves(walked(4), maps)
    mean = 1 + 4 / 4  # a quarter of the image moves by 5
    expected = [1.0] * 9
    expected[3] = 5 / mean
    assert curve["artifact"] == pytest.approx(expected)
    expected[3] = 1 / mean
    assert curve["sound"] == pytest.approx(expected)
    figures = mean_curves([curve, {"sound": [9.0] * 9}])
    assert figures["images"] == 1  # the other has no artifact
    jumps = figures["artifact"]["acceleration"]
    assert jumps[2] == pytest.approx(1.5) and jumps[3] == pytest.approx(-1.5)
    svg = drawing(figures, Window(t_d=0.9), 10)
    assert svg.count("<polyline") == 2 and svg.count("stroke-dasharray") == 2
    assert all(phase in svg for phase in ("Mutation", "Refinement"))
    assert drawing(mean_curves([{}]), Window(), 10) == ""
