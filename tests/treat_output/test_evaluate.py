"""The real `main` on a random FLUX: paired images, figures by hand, resume, refusals."""

import csv
import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from core.errors import UserError
from core.images import read_images
from tests.tiny import SIZE, save_tiny
from treat import evaluate
from treat.adapter import Adapter
from treat.arms import Sampling, load_arm, plan
from treat.curves import run_curves
from treat.lora import add_lora, lora_parameters, lora_state


def dark(images, prompts):
    """A judge that anybody can check: a pixel is an artifact where it is dark."""
    return (images.mean(dim=1, keepdim=True) < 0.5).float()


def many_dark(images, prompts):
    return dark(images, prompts).flatten(1).mean(dim=1) > 0.4


def meters(images, prompts):
    red = (images[:, 0].mean(dim=(1, 2)) > 0.5).long()
    named = np.array([prompt.split()[1] for prompt in prompts])
    return {"free.red": red, "category": named, "attribute_match": np.ones(len(images))}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base, an adapter that does something, one that does nothing, and prompts."""
    folder = tmp_path_factory.mktemp("files")
    base = save_tiny(folder / "tiny")
    model = load_arm(Sampling(str(base), 2, SIZE, SIZE, 2, "cpu", "fp32"), None)
    add_lora(model.network, 4, model.lora_targets("attention"), seed=1)
    save(folder / "nothing.safetensors", model)
    draw = torch.Generator().manual_seed(0)
    for weight in lora_parameters(model.network):
        weight.data = torch.randn(weight.shape, generator=draw)
    save(folder / "something.safetensors", model)
    (folder / "held_out.txt").write_text("a hand\na face\n")
    return folder


def save(path, model):
    state = {f"transformer.{name}": tensor for name, tensor in lora_state(model.network).items()}
    safetensors.torch.save_file(state, path)


def settings(files, out, **changes):
    values = {
        "base": str(files / "tiny"),
        "prompts": files / "held_out.txt",
        "adapters": (
            f"treated={files / 'something.safetensors'}",
            f"control={files / 'nothing.safetensors'}",
        ),
        "control": "control",
        "out": out,
        "n": 5,
        "sampling_steps": 1,
        "height": SIZE,
        "width": SIZE,
        "batch": 2,
        "shown": 2,
    }
    return evaluate.Config(**(values | changes))


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "evaluate"
    evaluate.main(settings(files, out), dark, meters, many_dark, judge_name="darkness")
    return out


def pictures(out, arm):
    return read_images(sorted((out / "images" / arm).glob("*.png")))


def test_figures_are_those_of_the_images_on_disk(finished):
    said = json.loads((finished / "summary.json").read_text())
    for name in ("base", "treated", "control"):
        images, arm = pictures(finished, name), said["arms"][name]
        assert arm["n"] == len(images) == 5
        assert arm["artifact_area"] == pytest.approx(dark(images, ()).mean().item())
        hits = many_dark(images, ()).float().mean().item()
        assert arm["artifact_frequency"] == pytest.approx(hits)
        assert set(arm["by_category"]) == {"hand", "face"} and arm["attribute_match"] == 1.0
        assert arm["entropy"] is not None
    told = (finished / "events.jsonl").read_text()
    assert told.count("points of images with artifacts") == 3 and str(finished) in told
    assert said["judge"] == "darkness" and "bootstrap" in said["method"]
    pairs = list(said["differences"])
    assert pairs == ["treated - control", "treated - base", "control - base"]


def test_no_sheet_is_named_where_none_is_shown(files, tmp_path):
    evaluate.main(settings(files, tmp_path / "out", shown=0), dark)
    told = (tmp_path / "out/events.jsonl").read_text()
    assert "report.html, summary.json" in told
    assert not (tmp_path / "out/sheet.png").exists()


def test_an_adapter_that_does_nothing_changes_nothing(finished):
    """Same prompts and same seeds to the bit; the other adapter is the control of this test."""
    base = pictures(finished, "base")
    assert torch.equal(pictures(finished, "control"), base)
    assert not torch.equal(pictures(finished, "treated"), base)
    said = json.loads((finished / "summary.json").read_text())
    assert said["differences"]["control - base"]["artifact_area"]["interval"] == [0, 0]
    assert (
        said["arms"]["control"]["change_outside"] == 0 < said["arms"]["treated"]["change_outside"]
    )


def test_what_stands_beside_is_in_every_arm(files, finished, tmp_path):
    own = {"beside": files / "something.safetensors", "control": None}
    own["adapters"] = (f"nothing={files / 'nothing.safetensors'}",)
    evaluate.main(settings(files, tmp_path, **own), judge=dark)
    for arm in ("base", "nothing"):
        moved = pictures(tmp_path, arm) - pictures(finished, "treated")
        assert moved.abs().max() <= 2 / 255
    assert (
        pictures(tmp_path, "base") - pictures(finished, "base")
    ).abs().max() > 4 / 255  # control


def test_prompts_repeat_with_new_seeds():
    draws = plan(["a", "b"], 5, seed=0)
    assert [draw.prompt for draw in draws] == ["a", "b", "a", "b", "a"]
    assert len({draw.seed for draw in draws}) == 5
    assert plan(["a", "b"], None, 0) == draws[:2] != plan(["a", "b"], None, 1)


def test_report_and_sheet(finished):
    text = (finished / "report.html").read_text()
    assert text.count("data:image/png") == 2 * 3 * 2  # pairs, arms, with and without heat-map
    assert "darkness" in text and "held_out.txt" in text
    assert str(finished) not in text and not re.search(r"https?://", text)
    assert (finished / "sheet.png").stat().st_size > 0


def test_every_image_has_its_row(finished):
    said = json.loads((finished / "summary.json").read_text())["arms"]
    for arm in ("base", "treated"):
        with (finished / f"{arm}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == said[arm]["n"] and rows[0]["prompt"]
        mean = sum(float(row["artifact_area"]) for row in rows) / len(rows)
        assert mean == pytest.approx(said[arm]["artifact_area"])
        hits = [row["artifact_frequency"] == "True" for row in rows]
        assert sum(hits) / len(rows) == pytest.approx(said[arm]["artifact_frequency"])


def test_the_same_command_draws_only_what_is_missing(files, finished):
    lost = finished / "images" / "treated" / "000003.png"
    kept = finished / "images" / "treated" / "000002.png"
    content, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    summary = (finished / "summary.json").read_bytes()
    lost.unlink()
    evaluate.main(settings(files, finished), dark, meters, many_dark, judge_name="darkness")
    assert lost.read_bytes() == content and kept.stat().st_mtime_ns == stamp
    assert (finished / "summary.json").read_bytes() == summary


def test_an_adapter_of_another_base_is_refused_before_anything_is_drawn(files, tmp_path):
    whole = safetensors.torch.load_file(files / "something.safetensors")
    one = next(name for name in whole if name.endswith(".lora_A.weight"))
    pair = (one, one.replace("lora_A", "lora_B"))
    cases = {
        "no module 'elsewhere": {f"transformer.elsewhere.{n.partition('.')[2]}": whole[n]
                                 for n in pair},
        "other sides": whole | {one: torch.ones(4, 3)},
    }  # fmt: skip
    for message, tensors in cases.items():
        safetensors.torch.save_file(tensors, tmp_path / "foreign.safetensors")
        given = {"adapters": (f"strange={tmp_path / 'foreign.safetensors'}",), "control": None}
        with pytest.raises(UserError, match=f"'strange' does not fit .*{message}"):
            evaluate.main(settings(files, tmp_path / "out", **given), dark)
    assert not (tmp_path / "out").exists()


def test_images_of_another_adapter_are_refused(files, finished, tmp_path):
    copy = tmp_path / "adapter.safetensors"
    copy.write_bytes((files / "nothing.safetensors").read_bytes())
    config = settings(files, tmp_path / "out", adapters=(f"treated={copy}",), control=None)
    evaluate.main(config, dark)
    copy.write_bytes((files / "something.safetensors").read_bytes())
    with pytest.raises(UserError, match="another adapter"):
        evaluate.main(config, dark)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adapters": ("runs/treat",)}, "NAME=PATH"),
        ({"adapters": ("base=x",)}, "two arms"),
        ({"adapters": ("a=missing",), "control": None}, "holds no adapter"),
        ({"adapters": (), "control": "ghost"}, "none of the adapters"),
        ({"n": None, "prompts": "one.txt"}, "one image makes no interval"),
    ],
)
def test_refusals_come_before_anything_heavy(files, tmp_path, monkeypatch, changes, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("a hand\n")
    changes = {"adapters": (), "control": None} | changes
    with pytest.raises(UserError, match=says):
        evaluate.main(settings(files, tmp_path / "out", **changes), dark)
    assert not (tmp_path / "out").exists()


def test_arms_are_drawn_as_they_were_trained(files, tmp_path):
    run = {"sampling_steps": 3, "height": 2 * SIZE, "width": 3 * SIZE}
    asked = settings(files, tmp_path, sampling_steps=None, height=None, width=None)
    arms = {"base": None, "plain": Adapter({}), "run": Adapter({}, 1, run)}
    assert evaluate.sampling(asked, arms)[1:4] == (3, 2 * SIZE, 3 * SIZE)
    own = json.loads((files / "tiny/vae/config.json").read_text())["sample_size"]
    assert evaluate.sampling(asked, {"base": None})[1:4] == (4, own, own)
    arms["other"] = Adapter({}, 1, run | {"sampling_steps": 30})
    told = "'run' with sampling_steps 3 and 'other' with sampling_steps 30 .* give --sampling-steps"
    with pytest.raises(UserError, match=told):
        evaluate.sampling(asked, arms)
    with pytest.raises(UserError, match="settings of 'run' are damaged .height."):
        evaluate.sampling(asked, {"base": None, "run": Adapter({}, 1, {"height": "tall"})})
    given = asked.model_copy(update={"sampling_steps": 2})
    assert evaluate.sampling(given, arms).steps == 2


def test_nobody_judges(files, tmp_path):
    with pytest.raises(UserError, match="nobody judges"):
        evaluate.main(settings(files, tmp_path / "out"))


def test_curves_of_a_run(tmp_path):
    lines = [{"step": s, "reward_mean": 1 / (s + 1), "seconds": 1.0} for s in (0, 5, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "summary.json").write_text(json.dumps({"best_step": 5}))
    (curve,) = run_curves(tmp_path, dark)
    assert curve.points == [(0, 1), (5, 1 / 6), (10, 1 / 11)] and curve.kept == 5
    assert run_curves(tmp_path / "plain.safetensors", dark) == []
