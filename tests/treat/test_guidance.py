"""Guidance and the revision of a base, from a treatment's settings to whatever opens it again."""

import json

import huggingface_hub
import pytest
import torch
import yaml

from base_models import sdxl
from core.errors import UserError
from tests.base_models.families import CASES
from tests.tiny import SIZE
from tests.treat.setting import build, config, digest
from treat import estimate, evaluate, export, phases, train
from treat.adapter import Adapter
from treat.arms import Draw, Sampling, check_origins, draw_images, encode, load_arm

HUB = "some-lab/FLUX.1-dev@0123abc"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = build(tmp_path_factory.mktemp("world"))
    CASES["sdxl"].pipeline().save_pretrained(world / "sdxl")
    return world


def settings(world, out, **changes):
    given = {"base": str(world / "sdxl"), "steps": 1, "watch_every": 0, "checkpoint_every": 1}
    return config(world, out, **(given | changes))


def test_a_treatment_learns_with_the_guidance_and_the_halves_it_is_given(world, tmp_path):
    asked = {
        "own": {},
        "same": {"guidance": sdxl.GUIDANCE},
        "other": {"guidance": 2.0},
        "prompt only": {"learn_empty": False},
    }
    found = {}
    for name, changes in asked.items():
        assert train.main(settings(world, tmp_path / name, steps=2, **changes)) == 0
        found[name] = digest(tmp_path / name, 2, ("adapter",))
    assert found["own"] == found["same"]
    assert len(set(found.values())) == 3


def test_what_the_base_does_not_have_is_refused_before_anything_is_written(world, tmp_path):
    flux = str(world / "base")
    for changes, said in (({"guidance": 2.0}, "--guidance"), ({"learn_empty": False}, "--no-lea")):
        asked = settings(world, tmp_path / "run", base=flux, **changes)
        with pytest.raises(UserError, match=said):
            train.main(asked)
        with pytest.raises(UserError, match=said):
            estimate.estimate(asked)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="the empty prompt is not asked"):
        settings(world, tmp_path / "run", guidance=1.0, learn_empty=False)


def test_a_run_does_not_go_on_with_other_guidance(world, tmp_path):
    assert train.main(settings(world, tmp_path, guidance=2.0)) == 0
    with pytest.raises(UserError, match="guidance differ"):
        train.main(settings(world, tmp_path, guidance=3.0, steps=2))


def test_an_estimate_counts_the_second_half(world, tmp_path):
    own, unguided = (
        estimate.estimate(settings(world, tmp_path / "run", guidance=scale))
        for scale in (None, 1.0)
    )
    drawing = phases.DRAWING
    assert own.phases[drawing].flops > 1.5 * unguided.phases[drawing].flops


def test_arms_are_drawn_with_the_guidance_they_are_given(world):
    def drawn(scale):
        sampling = Sampling(str(world / "sdxl"), 2, SIZE, SIZE, 1, "cpu", "fp32", guidance=scale)
        model = load_arm(sampling, None)
        text = encode(model, [Draw("a hand", 3)], "cpu")
        return draw_images(model, text, [3], sampling)

    assert torch.equal(drawn(None), drawn(sdxl.GUIDANCE))
    assert not torch.equal(drawn(None), drawn(2.0))


def test_an_evaluation_asks_for_the_guidance_a_run_was_trained_with(world, tmp_path):
    run = tmp_path / "run"
    assert train.main(settings(world, run, guidance=2.0)) == 0
    given = {"base": str(world / "sdxl"), "prompts": world / "prompts.txt", "step": "last"}
    given |= {"adapters": (f"t={run}",), "detectors": (f"d={world / 'detector'}",), "n": 2}
    given |= {"sampling_steps": 1, "height": SIZE, "width": SIZE, "shown": 0}
    with pytest.raises(UserError, match="'t' was trained with guidance 2.0: give --guidance 2.0"):
        evaluate.main(evaluate.Config(**given, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    evaluate.main(evaluate.Config(**given, out=tmp_path / "out", guidance=2.0))
    assert (tmp_path / "out/summary.json").is_file()
    export.main(export.Config(run=run, out=tmp_path / "lora", step="last"))
    assert "It was trained at guidance 2." in (tmp_path / "lora/README.md").read_text()


def test_an_arm_of_another_revision_is_refused(tmp_path, monkeypatch):
    arms = {"base": None, "t": Adapter({}, 1, {"base": HUB})}
    check_origins(arms, HUB, None)
    for base in ("some-lab/FLUX.1-dev", "some-lab/FLUX.1-dev@other"):
        with pytest.raises(UserError, match=f"'t' was trained on {HUB}: give --base {HUB}"):
            check_origins(arms, base, None)
    check_origins({"t": Adapter({}, 1, {"base": "some-lab/FLUX.1-dev"})}, HUB, None)
    check_origins(arms, "another-lab/FLUX.1-dev", None)  # bases of two names are the user's affair
    (tmp_path / "some-lab/FLUX.1-dev").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_origins(arms, "some-lab/FLUX.1-dev", None)  # a folder


def test_settings_keep_the_revision_and_the_export_tells_it(world, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, revision=None, **_):
        asked.append((name, revision))
        return str(world / "base")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    run, out = tmp_path / "run", tmp_path / "lora"
    assert train.main(settings(world, run, base=HUB)) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["base"] == HUB
    (run / "summary.json").write_text(json.dumps({"best_step": 1}))
    export.main(export.Config(run=run, out=out))
    assert "guidance" not in (out / "README.md").read_text()
    export.main(export.Config(run=run, out=tmp_path / "merged", merge=True))
    assert set(asked) == {("some-lab/FLUX.1-dev", "0123abc")}
    text = (out / "README.md").read_text()
    assert text.startswith("---\nbase_model: some-lab/FLUX.1-dev\n")
    assert 'from_pretrained("some-lab/FLUX.1-dev", revision="0123abc")' in text
    named = export.Config(run=run, out=out, base="some-lab/FLUX.1-dev")
    export.main(named)
    assert 'from_pretrained("some-lab/FLUX.1-dev")' in (out / "README.md").read_text()
