"""A detector that sees, one that is blind and one that flags everything are told apart."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import run_program
from core.errors import UserError
from core.image_files import list_images
from core.images import write_image
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from detector import sanity
from detector.metrics import wilson
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector
from tests.tiny import SIZE, save_tiny


def side(hits, n=100):
    return sanity.Side(n, hits, hits / n, *wilson(hits, n), area=hits / n / 10)


def test_wilsons_interval_is_the_published_one():
    # Newcombe 1998, table I, method 3.
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0, 0.1611), (29, 29, 0.8830, 1)):
        assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0, 1)


def test_the_interval_of_a_difference_is_the_published_one():
    # Newcombe 1998 (differences), table II, method 10: 56/70 - 48/80 and 9/10 - 3/10.
    for (a, m), (b, n), low, high in (
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
    ):
        found = sanity.difference(side(b, n), side(a, m))
        assert found == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("real", "samples", "names"),
    [
        (side(2), side(80), ["sees"]),
        (side(2), side(3), ["blind"]),
        (side(0), side(0), ["blind"]),
        (side(60), side(20), ["blind", "trigger_happy"]),
        (side(95), side(97), ["blind", "trigger_happy"]),
        (side(40), side(90), ["sees", "trigger_happy"]),
        (side(1, 8), side(3, 8), ["undecided"]),
    ],
)
def test_the_verdict_follows_the_intervals(real, samples, names):
    said = sanity.judge(real, samples)
    assert list(said) == names
    assert all(text.endswith(".") and "%" in text for text in said.values())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A detector of brightness: what is white it flags."""
    folder = tmp_path_factory.mktemp("world")
    save_detector(bright_detector(), folder / "detector", {})
    for name, level in (("dark", 0.0), ("bright", 1.0)):
        (folder / name).mkdir()
        for i in range(20):
            noise = 0.05 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i))
            write_image(folder / name / f"{i}.png", (level - noise).abs())
    (folder / "prompts.txt").write_text("a hand\na face\n")
    save_tiny(folder / "base")
    return folder


def bright_detector():
    """Fitted in closed form on the classifier alone: bright against dark."""
    detector = SegformerDetector(SegformerConfig(), seed=1).eval()
    head = detector.network.decode_head
    seen = []
    handle = head.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    ours = torch.cat([torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    with torch.no_grad():
        detector(ours)
        handle.remove()
        dark, bright = (x.mean((1, 2)) for x in seen[0])
        way = bright - dark
        weight, bias = head.classifier.weight, head.classifier.bias
        weight.copy_((20 * way / way.square().sum()).view_as(weight))
        bias.fill_(-10 - (weight.flatten() @ dark).item())
    return detector


def run(world, *words):
    given = ["--detector", str(world / "detector"), *map(str, words)]
    run_program(sanity.main, sanity.Config, given)


def test_the_program_tells_what_it_found(world, tmp_path, capsys):
    (world / "dark" / "text.png").write_text("no image")
    json_file, out = tmp_path / "figures.json", tmp_path / "out"
    words = ["--samples", world / "bright", "--json", json_file, "--out", out]
    run(world, "--real", world / "dark", *words)
    (world / "dark" / "text.png").unlink()
    said = json.loads(json_file.read_text())
    assert said["real"] | {"area": 0} == {
        "images": 20, "hits": 0, "rate": 0, "low": 0, "high": pytest.approx(0.1611, abs=1e-4),
        "area": 0, "unreadable": 1,
    }  # fmt: skip
    assert said["samples"]["rate"] == 1 and said["samples"]["area"] > 0.5
    assert list(said["verdicts"]) == ["sees"] and "it sees" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"real.png", "samples.png"}
    run(world, "--real", world / "bright", "--samples", world / "dark")
    told = capsys.readouterr().out
    assert "trigger-happy" in told and "blind" in told


def test_subfolders_and_stores_are_looked_at(world, tmp_path):
    for i, name in enumerate(("a", "b/c")):
        (tmp_path / "real" / name).mkdir(parents=True)
        shutil.copy(world / f"dark/{i}.png", tmp_path / "real" / name)
    with ShardWriter(tmp_path / "store") as writer:
        for i in range(3):
            level = np.array(Image.open(world / f"bright/{i}.png"))
            writer.write(Sample(f"s{i}", level, None, Record(key=f"s{i}", source="pseudo")))
    json_file = tmp_path / "figures.json"
    words = ["--samples", tmp_path / "store", "--json", json_file]
    run(world, "--real", tmp_path / "real", *words)
    said = json.loads(json_file.read_text())
    assert [said[side]["images"] for side in ("real", "samples")] == [2, 3]
    assert [said[side]["hits"] for side in ("real", "samples")] == [0, 3]


def test_a_base_draws_its_own(world, tmp_path, capsys):
    words = ["--base", world / "base", "--prompts", world / "prompts.txt", "--n", 3, "--steps", 2]
    words += ["--height", SIZE, "--width", SIZE, "--base-dtype", "float32", "--batch", 2]
    for out in ("one", "two"):
        run(world, "--real", world / "dark", *words, "--out", tmp_path / out)
    one, two = (list_images(tmp_path / out / "samples") for out in ("one", "two"))
    assert [a.read_bytes() for a in one] == [b.read_bytes() for b in two] and len(one) == 3
    assert "samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["--real", "dark"], "--samples"),
        (["--real", "dark", "--samples", "bright", "--base", "base"], "not both"),
        (["--real", "dark", "--base", "base"], "belong together"),
        (["--real", "none", "--samples", "bright"], "does not exist"),
        (["--real", "base", "--samples", "bright"], "no image in"),
        (["--real", "prompts.txt", "--samples", "bright"], "is a file"),
        (["--real", "dark", "--base", "base", "--prompts", "none.txt"], "cannot read the prompts"),
        (["--real", "dark", "--base", "none", "--prompts", "prompts.txt"], "no base model"),
    ],
)
def test_bad_input_is_named(world, capsys, words, cure):
    given = [word if word.startswith("--") else world / word for word in words]
    with pytest.raises(SystemExit) as stop:
        run(world, *given)
    assert stop.value.code == 2 and cure in capsys.readouterr().err


def test_images_that_cannot_be_read_are_no_sanity(world, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    config = sanity.Config(
        detector=world / "detector", real=tmp_path, samples=world / "bright", device="cpu"
    )
    with pytest.raises(UserError, match="none of the real images"):
        sanity.main(config)
