"""The combinations' bookkeeping: what each arm learns from and is drawn with, and the table."""

import json

import pytest
import torch

from benchmarks import combinations
from benchmarks.combinations import ARMS, Config, markdown, treatment
from core.errors import UserError
from core.image_files import list_images
from core.images import read_images
from diffdoctor.demo import Demo
from diffdoctor.demo_settings import FULL, OF_BASE
from treat.offline import read_offline


@pytest.fixture
def demo(tmp_path):
    made = Demo(tmp_path / "demo", OF_BASE["sdxl"])
    (made.out / "prompts").mkdir(parents=True)
    for part in ("train", "search", "held_out"):
        (made.out / f"prompts/{part}.txt").write_text("a left hand\na right hand\n")
    return made


def config(demo: Demo, **changes) -> Config:
    out = demo.out.parent / "out"
    return Config.model_validate({"demo": demo.out, "out": out, "distilled": 3, **changes})


def test_each_arm_learns_from_what_its_name_says(demo):
    told = {arm: treatment(config(demo), demo, arm) for arm in ("flaw_map", "distilled",
                                                               "distilled_control")}  # fmt: skip
    own = OF_BASE["sdxl"].treat
    assert {one.steps for one in told.values()} == {own["steps"]}
    assert told["flaw_map"].detector == demo.out.parent / "out/highlighter"
    assert told["flaw_map"].second_detector == demo.out / "second_detector"
    assert told["flaw_map"].pixel_weight == own["pixel_weight"]
    assert told["flaw_map"].offline == demo.out / "data/real"
    for arm, kind in (("distilled", "corrected"), ("distilled_control", "plain")):
        assert (told[arm].pixel_weight, told[arm].lock_weight) == (0, 0)
        assert str(told[arm].offline) == str(demo.out.parent / "out/distilled/images" / kind)
    assert treatment(config(demo, steps=3), demo, "flaw_map").steps == 3


def test_combinations_share_their_adapters():
    assert ARMS["segformer_asced"].adapter == ARMS["segformer"].adapter == "segformer"
    assert ARMS["segformer_asced"].corrected and not ARMS["segformer"].corrected
    assert ARMS["asced"].adapter is None and ARMS["asced"].corrected


def test_few_steps_are_refused(tmp_path):
    note = {"base": "newest", "labelled": FULL.labelled}
    (tmp_path / "demo.json").write_text(json.dumps(note))
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="--base sdxl"):
        combinations.main(Config.model_validate({"demo": tmp_path, "out": tmp_path / "out"}))
    assert not (tmp_path / "out").exists()


class Halved:
    """A corrector that anybody can check, and that knows the guidance of what it corrects."""

    guidance = None

    def make(self, model):
        self.guidance = model.guidance
        return lambda moment: moment.unchanged()._replace(latents=moment.leaving / 2)


@pytest.mark.slow
def test_distilled_images_have_captions_and_their_control_shares_their_seeds(demo, monkeypatch):
    halved = Halved()
    monkeypatch.setattr(combinations, "asced", lambda *of: halved)
    for kind in ("corrected", "plain"):
        assert combinations.distil(config(demo, distilled_guidance=1), demo, kind) is None
    folders = [demo.out.parent / "out/distilled/images" / kind for kind in ("corrected", "plain")]
    corrected, plain = (read_images(list_images(folder)) for folder in folders)
    assert halved.guidance == 1
    assert corrected.shape == plain.shape and not torch.equal(corrected, plain)
    real = read_offline(folders[0], None)
    assert real.captions == ["a left hand", "a right hand", "a left hand"]
    kept = {path: path.stat().st_mtime_ns for path in list_images(folders[0])}
    combinations.distil(config(demo, distilled_guidance=1), demo, "corrected")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_table_pairs_with_base_and_control():
    figures = ("artifact_frequency", "artifact_area")
    arm = dict.fromkeys((*figures, "attribute_match"), 0.25) | {"n": 8}
    arm |= {"interval": {name: [0.1, 0.4] for name in figures}}
    change = {name: {"difference": -0.05, "interval": [-0.1, 0.02]} for name in figures}
    summary = {
        "arms": {"base": arm, "control": arm, "asced": arm, "segformer_asced": arm},
        "differences": {
            "control - base": change,
            "asced - base": change,
            "segformer_asced - segformer": change,
        },
        "method": "paired",
    }
    said = markdown(summary, ["asced"]).splitlines()
    assert said[2].startswith("| base | 8 | 25.0% [10.0%, 40.0%] |")
    row = "| base, ASCED | 8 | 25.0% [10.0%, 40.0%] | 25.0% [10.0%, 40.0%] | 25.0% |"
    assert said[4] == f"{row} -5.00 [-10.00, +2.00] | -5.00 [-10.00, +2.00] |  |  |  |  |"
    assert said[5].endswith(f"|  |  |  | segformer {2 * '| -5.00 [-10.00, +2.00] '}|")
    assert said[-1].endswith("No look at 'base, ASCED' was sound: its last step is shown.")


@pytest.mark.parametrize(("best", "step"), [(None, "last"), (40, "best")])
def test_of_a_ruined_treatment_the_last_step_is_shown(demo, monkeypatch, best, step):
    asked = []
    monkeypatch.setattr(combinations, "read_adapter", lambda *wanted: asked.append(wanted))
    folder = demo.out.parent / "out/adapters/flaw_map"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"best_step": best}))
    combinations.adapter_of(config(demo), demo, "flaw_map")
    assert asked == [(folder, step)]
