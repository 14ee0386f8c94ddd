"""ASCED's table, as small as it goes: every row from the same seeds, its figures, resume, curve."""

import json

import numpy as np
import pytest
import torch

from benchmarks import asced_draw, asced_table, score_curve
from benchmarks.asced_controls import elsewhere
from benchmarks.asced_figures import PERCENT, cost, joined, markdown
from benchmarks.asced_tune import TRIED, choices
from core.errors import UserError
from core.image_files import list_images
from core.images import read_images
from core.run import PAUSED, Run
from detector.features import Description, SmallFeatures, save_features
from detector.score_dynamics import Window
from detector.set_metrics import Fid
from miniature.meters import Bench
from treat.arms import BASE
from treat.calibrate import chosen, variety
from treat.compare import vectors_of
from treat.correctors.acceleration import drawing
from treat.evaluate import reader
from treat.offline import read_offline

IMAGES = 12


def settings(tmp_path, **changes):
    if not (tmp_path / "features").exists():
        shape = Description(name="toy features", channels=(4, 8, 3), side=32)
        save_features(SmallFeatures(shape, seed=1), shape, tmp_path / "features")
    few = {"images": IMAGES, "batch": 8, "sampling_steps": 20, "calibration_images": 2}
    few |= {"resamples": 4, "features": str(tmp_path / "features"), "base": "sdxl"}
    return asced_table.Config.model_validate(
        {"out": tmp_path / "run", "device": "cpu"} | few | changes
    )


@pytest.mark.slow
def test_every_row_is_drawn_judged_and_goes_on(tmp_path, monkeypatch):
    config, looks = settings(tmp_path), iter([False])
    with monkeypatch.context() as stopped:
        stopped.setattr(Run, "interrupted", property(lambda run: next(looks, True)))
        assert asced_table.main(config) == PAUSED
    out = tmp_path / "run"
    first = (out / "batches/000000.json").read_bytes()
    assert len(list((out / "batches").iterdir())) == 1 and not (out / "table.md").exists()
    assert asced_table.main(config) is None
    assert (out / "batches/000000.json").read_bytes() == first

    names = [BASE, *asced_table.ROWS]
    drawn = {name: read_images(list_images(out / "images" / name)) for name in names}
    assert all(len(one) == IMAGES for one in drawn.values())
    assert all(not torch.equal(drawn[name], drawn[BASE]) for name in ("asced", "pal_ttc"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["features"]["name"] == "toy features" and summary["real"] == IMAGES
    rows = summary["rows"]
    assert list(rows) == names and rows[BASE]["cost"] == 1 and rows["bayes"]["cost"] > 1.3
    prompts = [one.prompt for one in asced_table.ask(config).draws]
    oracle = Bench()
    flagged = oracle.flagged(drawn["asced"], prompts).mean()
    assert rows["asced"]["artifact_frequency"] == pytest.approx(flagged)
    network = asced_table.open_features(config.features)
    seen = [vectors_of(network, read_offline(out / place, None, False), 8, "")
            for place in ("real/images", "images/asced")]  # fmt: skip
    assert rows["asced"]["fid"] == pytest.approx(Fid(seen[0])(seen[1]), rel=1e-6)
    found = summary["calibration"]["paper"]
    assert found["images"] == 2 and found["steps"] == 20
    tuned = summary["tuned"]
    for row in TRIED:
        left = [{"words": said, **tuned["left"][f"{row} {said}"]} for said in choices(row)]
        assert tuned["kept"][row] == chosen(left, tuned["left"][BASE])["words"]
    page = (out / "table.md").read_text()
    assert page.count("FID") == page.count("FID (toy features)") and "PAL + TTC" in page
    with pytest.raises(UserError, match="other settings"):
        asced_table.main(config.model_copy(update={"images": IMAGES + 1}))


def test_the_numbers_of_a_row_are_tried_each_with_each():
    assert choices("state_replacement") == ["back=1", "back=3", "back=6"]
    assert len(choices("pal_ttc")) == 9 and "threshold=0.3 gamma=0.25" in choices("pal_ttc")


def test_a_choice_that_wipes_images_out_is_not_taken():
    plain = {"area": 0.2, "variety": 1.0}
    wiped, mended = {"area": 0.0, "variety": 0.3}, {"area": 0.1, "variety": 0.9}
    assert chosen([wiped, mended], plain) is mended  # by its area alone `wiped` would win
    assert chosen([wiped, {"area": 0.3, "variety": 0.5}], plain)["variety"] == 0.5
    some = torch.rand(8, 3, 4, 4)
    assert variety(some) > 10 * variety(0.05 * some + 0.5)


def test_controls_mend_as_much_elsewhere():
    found = torch.zeros(2, 1, 8, 8)
    found[:, :, :3, :2] = 1
    corrector = asced_table.Asced(lambda moment, window: found)
    shifted = elsewhere(corrector, "shifted").find(None, Window())
    assert shifted.sum() == found.sum() and not (shifted * found).any()
    assert shifted[0, 0, 4:7, 4:6].all()
    assert elsewhere(corrector, "everywhere").find(None, Window()).all()


def test_rows_have_one_seed_and_their_order_goes_round(tmp_path):
    """Plain sampling is the same to the bit wherever it stands in a batch's order."""
    config = settings(tmp_path, rows=("score_clipping",), images=4)
    asked, oracle = asced_table.ask(config), Bench()
    read = reader(oracle.judge, oracle.flagged, oracle.meters, {})
    makers = {"nothing": lambda model: lambda moment: moment.unchanged()}
    with Run.start(config, tmp_path / "run", "test") as run:
        plan = asced_draw.Plan(asked.base, asked.draws, 4, 2, "cpu")
        assert asced_draw.draw_rows(run, plan, makers, read)
        orders = [list(json.loads(path.read_text())["seconds"])
                  for path in sorted((run.folder / "batches").iterdir())]  # fmt: skip
        images = [read_images(list_images(run.folder / "images" / name)) for name in orders[0]]
    assert orders == [[BASE, "nothing"], ["nothing", BASE]]
    assert torch.equal(*images)


def test_a_base_without_prompts_is_compared_with_what_taught_it(tmp_path):
    asked = asced_table.Asked("ddpm", False, [], tmp_path)
    samples = asced_table.real_samples(asked, 100, 7)
    names = [one.record.category for one in samples]
    assert len(names) == 100 and names.count("bicycle") == 26 and names.count("scenery") == 10
    assert len(set(names[:10])) == 5  # mixed: a part of them is like all of them


def test_the_cost_is_the_ratio_of_interleaved_batches():
    batches = [{"seconds": {BASE: s, "a": 1.5 * s}} for s in (1.0, 2.0, 4.0)]
    found = cost(batches, "a", 0)
    assert found["cost"] == pytest.approx(1.5)
    assert found["cost_interval"] == pytest.approx([1.5, 1.5])  # the machine's moods cancel
    assert found["seconds"] == pytest.approx(3.5)


def test_tables_of_batches_are_what_they_were_before_json():
    batches = [
        {"tables": {"a": {"x": [0.5, None], "hit": [True, False], "category": ["hand", "face"]}}},
        {"tables": {"a": {"x": [1.0], "hit": [True], "category": ["hand"]}}},
    ]
    table = joined(batches, "a")
    np.testing.assert_array_equal(table["x"], [0.5, np.nan, 1.0])
    assert table["hit"].dtype == bool and table["category"].dtype.kind == "U"


def test_markdown_says_what_is_better_than_what():
    row = {"fid": 2.0, "kid": 0.001, "kid_deviation": 0.0, "cost": 1.0, "cost_interval": [1, 1]}
    row |= {"changed": 0.5}
    shares = dict.fromkeys(PERCENT, 0.25)
    row |= shares | {"interval": {"fid": None, **dict.fromkeys(shares, [0.2, 0.3])}}
    apart = {"difference": -0.01, "interval": [-0.02, -0.005]}
    other = row | {"difference": dict.fromkeys(("fid", *shares), apart)}
    found = {"features": {"name": "toy features"}, "rows": {BASE: row, "asced": other}}
    found |= {"images": 2000, "base": "bases/ldm", "sampling_steps": 25, "real": 2000, "judge": "J"}
    said = markdown(found, {BASE: "Original", "asced": "ASCED (paper)"})
    assert "| Original | 2.000 | 1.000 ± 0.000 | 25.00% [20.00%, 30.00%]" in said
    assert "| ASCED (paper) | -0.010 [-0.020, -0.005] | -1.00 [-2.00, -0.50] |" in said


def test_what_cannot_be_drawn_is_refused_before_anything_is_made(tmp_path):
    for changes, says in (
        ({"base": "nowhere"}, "is no base model"),
        ({"leads": tmp_path}, "detector"),
        ({"leads": asced_table.DETECTORS / "second"}, "also calibrates"),
        ({"features": str(tmp_path)}, "holds none"),
    ):
        with pytest.raises(UserError, match=says):
            asced_table.main(settings(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def curve(artifact, sound, control):
    return {"curves": {"artifact": artifact, "sound": sound}, "control": {"artifact": control}}


def test_swings_are_sums_of_absolute_changes_by_phase():
    flat, jump = [1.0] * 9, [1.0] * 4 + [3.0] + [1.0] * 4  # of 10 steps, read at steps 1 to 9
    records = [curve(jump, flat, flat), curve(jump, flat, jump), {"curves": {}}]
    found = score_curve.swings(records, Window(t_c=0.48, t_d=0.7), 10, 0)
    apart = found["artifact - sound"]
    assert apart["images"] == 2 and apart["artifact"]["all"] == pytest.approx(4)
    # Parted at steps 3 and 5: the jump is read at step 5, the fall at 6.
    phases = {"Profiling": 0, "Mutation": 0, "Refinement": 4, "all": 4}
    assert apart["artifact"] == pytest.approx(phases)
    assert apart["difference"]["all"]["difference"] == pytest.approx(4)
    control = found["artifact - control"]["difference"]["all"]
    assert control["difference"] == pytest.approx(2) and control["interval"][0] <= 2


def write_run(folder, records):
    (folder / "records/base").mkdir(parents=True)
    for i, record in enumerate(records):
        (folder / f"records/base/{i:06d}.json").write_text(json.dumps(record))
    summary = {"window": {"t_c": 0.48, "t_d": 0.7}, "judge": "J"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("sampling_steps: 10\n")


def test_a_runs_curve_is_drawn_with_its_figures(tmp_path):
    rng = np.random.default_rng(0)
    sides = [rng.normal(1, spread, (30, 9)).tolist() for spread in (0.5, 0.1, 0.1)]
    write_run(tmp_path / "run", [curve(*row) for row in zip(*sides, strict=True)] + [{}])
    svg = tmp_path / "docs/curve.svg"
    svg.parent.mkdir()
    score_curve.main(score_curve.Config(run=tmp_path / "run", svg=svg))
    found = json.loads((tmp_path / "run/score_curve.json").read_text())
    assert found["images"] == 30 and set(found["swing"]) == set(score_curve.PAIRS)
    for pair in found["swing"].values():
        assert pair["difference"]["all"]["interval"][0] > 0
    low, high = np.array(found["curves"]["artifact"]["interval"])
    middle = np.array(found["curves"]["artifact"]["acceleration"])
    assert (low < middle).all() and (middle < high).all()
    wanted = 2 * 1.96 * 0.5 * 2**0.5 / 30**0.5  # of a mean of 30 differences
    assert (high - low).mean() == pytest.approx(wanted, rel=0.2)
    assert svg.read_text().count("<polygon") == 2 and "Refinement" in svg.read_text()


def test_a_run_without_flaws_has_no_curve(tmp_path):
    write_run(tmp_path / "run", [{"curves": {}}])
    with pytest.raises(UserError, match="no two images with an artifact"):
        score_curve.main(score_curve.Config(run=tmp_path / "run"))
    assert drawing({"images": 0}, Window(), 10) == ""
