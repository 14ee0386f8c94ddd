"""Our step beside other trainers': what can be held without their code."""

import json
import mmap

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline

from benchmarks import against_release, against_trl, our_step, peer_worlds, side_by_side
from benchmarks.footprint import Footprint
from benchmarks.our_step import OwnGrid
from benchmarks.side_by_side import (
    FOUND,
    GRADIENT,
    Rival,
    Task,
    Variant,
    agreement,
    compare,
    cosine,
    measure,
    measure_both,
    noise_seed,
    report,
    table,
    told,
    verdicts,
    write_gradient,
)
from core.errors import UserError
from core.run import plain
from treat.update import NOISE, Places

PROGRAMS = [(against_release, "release"), (against_trl, "trl")]
ROWS = {
    "peer": {"cpu": 10.0, "held": 1000.0, "peak": 1000.0},
    "lean": {"cpu": 11.0, "held": 300.0, "peak": 410.0},
    "fast": {"cpu": 7.6, "held": 2000.0, "peak": 2000.0},
    "other": {"cpu": 1.0, "held": 1.0, "peak": 1.0},
}
HELD = {name: {"held": row["held"]} for name, row in ROWS.items()}
VARIANTS = [
    Variant("lean", 4, {}, cpu=1.1, memory=0.4),
    Variant("fast", 4, {}, cpu=0.75),
    Variant("other", 1, {}),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An SD that is smaller still, with adapters and a detector."""
    patch, top = pytest.MonkeyPatch(), tmp_path_factory.mktemp("world")
    shape = {"block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
    ends = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    small = {**peer_worlds.UNET_SHAPE, **shape, **ends, "layers_per_block": 1}
    patch.setattr(peer_worlds, "UNET_SHAPE", {**small, "attention_head_dim": 2})
    patch.setattr(peer_worlds, "SD_VAE", {**peer_worlds.SD_VAE, "block_out_channels": (4, 8)})
    yield {
        "base": peer_worlds.save_sd(top / "base"),
        "lora": peer_worlds.save_lora(top / "lora", "sd", 2),
        "detector": peer_worlds.save_detector(top / "detector"),
    }
    patch.undo()


def task(world, folder, **changes):
    shared = {"side": 16, "steps": 3, "last": 2, "rank": 2, "repeats": 1}
    return Task(**{**world, **shared, "folder": folder, **changes})


def measured(one):
    """In this process: a fresh one takes seconds to import its libraries."""
    one.folder.mkdir()
    our_step.main(one)
    return json.loads((one.folder / FOUND).read_text())


def test_a_step_is_measured_and_leaves_its_gradient(world, tmp_path):
    lean = {"recompute": True, "checkpoint_blocks": True, "checkpoint_decoder": True}
    fast = measured(task(world, tmp_path / "fast"))
    same = measured(task(world, tmp_path / "lean", repeats=0, two_pass_decode=True, **lean))
    assert len(fast["seconds"]) == 1 and 0 < fast["cpu"] < 60
    assert fast["resident"] > 100 and 0 < fast["peak"] < 2000
    assert fast["norm"] > 0 and fast["loss"] > 0
    near = agreement(tmp_path / "fast", tmp_path / "lean")
    assert near["relative difference"] < 1e-5 and near["norm of theirs"] > 0
    assert same["loss"] == pytest.approx(fast["loss"], rel=1e-6)


TOY = """import json, os, sys
from pathlib import Path
if "refused" in sys.argv[-1]:
    sys.exit("error: there is no such thing")
found = {"threads": os.environ["OMP_NUM_THREADS"], "cpu": 1.0, "peak": 5.0}
found["malloc"] = os.environ.get("MALLOC_MMAP_THRESHOLD_")
found["task"] = Path(sys.argv[-1]).read_text()
Path("found.json").write_text(json.dumps(found))
"""


def test_a_task_has_a_process_of_its_own(world, tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    found = measure("toy", task(world, tmp_path / "run"), [tmp_path])
    assert found["threads"] == "1" and found["malloc"] is None
    assert yaml.safe_load(found["task"])["side"] == 16
    both = measure_both("toy", task(world, tmp_path / "timed"), [tmp_path])
    assert both["cpu"] == 1.0 and both["held"] == 5.0 and both["malloc"] is None
    assert json.loads((both["gradient"] / FOUND).read_text())["malloc"] == "1048576"
    alone = measure_both("toy", task(world, tmp_path / "alone", repeats=0), [tmp_path])
    assert alone == {"held": 5.0, "gradient": tmp_path / "alone/held"}


GRADED = """import json, sys
from pathlib import Path
import numpy, yaml
from safetensors.numpy import save_file
task = yaml.safe_load(Path(sys.argv[-1]).read_text())
lean, peer = task["recompute"], task["peer"] is not None
grads = {"0000": numpy.array([1.0, 1.0 if peer or lean else 0.5])}
save_file(grads, "gradient.safetensors")
found = {"cpu": 10.0 if peer else 11.0 if lean else 7.0, "peak": 100.0 if peer else 30.0}
Path("found.json").write_text(json.dumps(found))
"""


def test_a_comparison_reports_rows_reaches_and_gradients(world, tmp_path, monkeypatch):
    (tmp_path / "graded.py").write_text(GRADED)
    monkeypatch.setattr(side_by_side, "OURS", "graded")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rival = Rival("peer", "graded", tmp_path, (tmp_path,))
    variants = [
        Variant("lean", 2, {"recompute": True}, cpu=1.05, memory=0.4),
        Variant("fast", 2, {}, cpu=0.75),
        Variant("short", 1, {}),
    ]
    shared = task(world, tmp_path / "runs")
    found = compare(rival, shared, variants, {"grid": {"detector_grid": True}})
    assert list(found["rows"]) == ["peer", "lean", "fast", "short"]
    assert list(found["gradients"]) == ["lean", "fast", "grid"]
    assert found["gradients"]["lean"]["cosine"] == pytest.approx(1)
    assert found["gradients"]["fast"]["relative difference"] == pytest.approx(0.5 / 2**0.5)
    lines = report("peer", found).splitlines()
    assert "| lean | 11.00 | 1.10 | 30 | 0.30 | 30 | 0.30 |" in lines
    assert "NOT REACHED: lean, CPU s a step: 1.100 of the peer's (asked 1.05)" in lines
    assert "reached: fast, CPU s a step: 0.700 of the peer's (asked 0.75)" in lines
    assert sum(line.startswith("gradient, ") for line in lines) == 3
    json.dumps(plain(found))


def test_a_process_that_fails_says_its_last_line(world, tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    with pytest.raises(UserError, match=r"toy failed \(error: there is no such thing\)"):
        measure("toy", task(world, tmp_path / "refused"), [tmp_path])


def test_memory_that_is_given_back_counts_until_it_is():
    footprint = Footprint()
    footprint.begin()
    for _ in range(2):
        # Straight from the system: a heap with room for it would keep what is freed.
        with mmap.mmap(-1, 100_000_000) as held:
            for page in range(0, len(held), mmap.PAGESIZE):
                held[page] = 1
        footprint.lap()
    found = footprint.found()
    assert 90 < found["peak"] < 150
    assert found["cpu"] == found["seconds"][0] > 0
    again = Footprint()
    again.begin()
    again.lap()
    assert again.found()["peak"] < 50


def test_the_noise_is_that_of_the_treatment():
    places = Places(side_by_side.SEED, 1, 1)
    assert [noise_seed(step) for step in (1, 2)] == [
        places.seeds(NOISE, step, places.here(0))[0] for step in (1, 2)
    ]


def test_the_table_has_the_peer_as_its_measure():
    lines = table("peer", ROWS).splitlines()
    assert lines[0].startswith("| | CPU s a step | ratio | MB held | ratio | MB resident | ratio |")
    assert lines[2] == "| peer | 10.00 | 1.00 | 1000 | 1.00 | 1000 | 1.00 |"
    assert lines[3] == "| lean | 11.00 | 1.10 | 300 | 0.30 | 410 | 0.41 |"
    assert len({line.count("|") for line in lines}) == 1
    assert table("peer", HELD).splitlines()[3] == "| lean | 300 | 0.30 |"


def test_what_was_asked_is_said_with_what_was_found():
    found = verdicts("peer", ROWS, VARIANTS)
    assert [(row["variant"], row["of"], row["reached"]) for row in found] == [
        ("lean", "cpu", True),
        ("lean", "held", True),
        ("lean", "peak", False),
        ("fast", "cpu", False),
    ]
    assert told(found[1]) == "reached: lean, MB held: 0.300 of the peer's (asked 0.4)"
    assert told(found[3]) == "NOT REACHED: fast, CPU s a step: 0.760 of the peer's (asked 0.75)"
    assert [row["of"] for row in verdicts("peer", HELD, VARIANTS)] == ["held"]


def test_gradients_that_differ_are_seen(tmp_path, world):
    tasks = [task(world, tmp_path / name) for name in ("ours", "theirs", "other")]
    for one in tasks:
        one.folder.mkdir()
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])
    write_gradient(tasks[0], [a, b])
    write_gradient(tasks[1], [a, -b])
    write_gradient(tasks[2], [b])
    found = agreement(tasks[0].folder, tasks[1].folder)
    assert found["cosine"] == pytest.approx((9 - 16) / 25)
    assert found["relative difference"] == pytest.approx(8 / 5)
    assert found["lowest cosine of a matrix"] == pytest.approx(-1)
    tiny, zero = torch.tensor([3e-12, 4e-12]).double(), torch.zeros(2).double()
    assert cosine(tiny, 2 * tiny) == pytest.approx(1)
    assert (cosine(zero, zero), cosine(zero, tiny)) == (1.0, 0.0)
    with pytest.raises(UserError, match="different matrices"):
        agreement(tasks[0].folder, tasks[2].folder)
    assert (tasks[0].folder / GRADIENT).is_file()


@pytest.mark.parametrize("program, option", PROGRAMS)
def test_a_folder_that_is_no_checkout_is_refused_first(program, option, tmp_path):
    with pytest.raises(UserError, match=r"is no checkout of .* \(no .*\): `"):
        program.main(program.Config(**{option: tmp_path}))
    assert not list(tmp_path.iterdir())


def test_a_package_that_the_peer_lacks_is_named(tmp_path):
    rival = Rival("peer", "benchmarks.peer_step", tmp_path, (tmp_path,))
    (tmp_path / "file.py").touch()
    (tmp_path / "here.py").touch()
    rival.check(["file.py"], ["here", "json"], "")
    with pytest.raises(UserError, match="peer imports nowhere_at_all: `pip install"):
        rival.check(["file.py"], ["here", "nowhere_at_all"], "")


@pytest.mark.parametrize("program, option", PROGRAMS)
def test_every_reach_is_of_a_variant_that_learns_as_much_as_it_says(program, option):
    names = [variant.name for variant in program.VARIANTS]
    assert len(set(names)) == len(names)
    assert all(v.name.startswith(f"K={v.last} ") for v in program.VARIANTS)
    assert any(v.cpu for v in program.VARIANTS) and any(v.memory for v in program.VARIANTS)


def test_the_base_is_a_pipeline_whose_images_no_clamp_changes(world):
    pipeline = StableDiffusionPipeline.from_pretrained(world["base"])
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert 0.05 < image.std() < 0.2 and image.abs().max() < 1


def test_the_detector_is_the_same_in_both_libraries(world):
    from transformers import SegformerForSemanticSegmentation

    ours = peer_worlds.open_detector(world["detector"])
    theirs = SegformerForSemanticSegmentation.from_pretrained(world["detector"]).eval()
    images = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = theirs(pixel_values=(images - ours.mean) / ours.std).logits
        torch.testing.assert_close(ours.logits(images), logits, atol=1e-4, rtol=1e-4)
        maps = OwnGrid(ours)(torch.nn.functional.interpolate(images, scale_factor=2.0))
    assert maps.shape == (1, 1, 512, 512)
    assert maps.min() > 0.1  # every pixel pulls


def test_found_figures_are_plain(world, tmp_path):
    one = task(world, tmp_path / "plain")
    one.folder.mkdir()
    side_by_side.write(one, {"cpu": 1.0})
    assert json.loads((one.folder / side_by_side.FOUND).read_text()) == {"cpu": 1.0}
