"""Several processes (gloo): equal across ranks to the bit, with the gradient of one process."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from core.config import load_config, presets, run_program
from core.errors import UserError
from core.run import PAUSED
from detector import train
from detector.augmentation import Augmentation
from detector.parallel import Share
from detector.segformer import SegformerConfig, SegformerDetector, checkpoint_blocks
from tests.detector.test_train import losses, settings, tensors
from tests.detector.toy import toy_shards
from tests.forked import served

PLAIN = Augmentation(adversarial=0).model_dump()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return toy_shards(tmp_path_factory.mktemp("data") / "shards", 24)


@pytest.fixture(scope="module")
def launch():
    """The program on so many processes; the state and gradients of each."""
    with served("tests.detector.two") as call:

        def launch(processes, config, stop=0):
            out = Path(config.out).with_suffix(".ranks")
            given = {"settings": config.model_dump_json(), "out": str(out), "stop": stop}
            assert call(processes, given) == [PAUSED if stop else 0] * processes
            ranks = [
                out.with_name(f"{out.name}-rank{rank}.safetensors") for rank in range(processes)
            ]
            return [safetensors.torch.load_file(path) for path in ranks]

        yield launch


def apart(a, b):
    """Largest relative L2 distance of the gradients of a step."""
    names = [name for name in a if name.startswith("gradient")]
    assert names == [name for name in b if name.startswith("gradient")] and names
    return [((a[n] - b[n]).norm() / a[n].norm()).item() for n in names]


def wished(shards, out, **changes):
    """A rate near zero: what is compared are gradients of the same weights."""
    values = {"augmentation": PLAIN, "learning_rate": 1e-9, "alignment_sound": 0}
    return settings(shards, out, **(values | {"steps": 3, "alignment_batch": 4} | changes))


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_gradient_is_one_processs(launch, shards, tmp_path, number):
    (one,) = launch(1, wished(shards, tmp_path / "one"))
    ranks = launch(number, wished(shards, tmp_path / "run"))
    assert all(torch.equal(ranks[0][n], each[n]) for each in ranks for n in ranks[0])
    assert max(apart(one, ranks[0])) < 1e-5
    for name in (n for n in one if "running" in n):
        torch.testing.assert_close(ranks[0][name], one[name], rtol=1e-5, atol=1e-7)


def test_stochastic_depth_is_one_processs(launch, shards, tmp_path):
    deep = {"variant": "mit_b0", "size": 64, "steps": 1, "alignment": 0.0}
    (one,) = launch(1, wished(shards, tmp_path / "one", **deep))
    first, second = launch(2, wished(shards, tmp_path / "two", **deep))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert max(apart(one, first)) < 1e-5


@pytest.mark.slow
def test_with_everything_on_ranks_stay_equal_and_a_resume_is_exact(launch, shards, tmp_path):
    taught = {"alignment_sound": 2, "checkpoint_blocks": True, "variant": "mit_b0", "size": 32}
    first, second = launch(2, settings(shards, tmp_path / "whole", **taught))
    assert all(torch.equal(first[name], second[name]) for name in first)
    parts = settings(shards, tmp_path / "parts", **taught)
    launch(2, parts, stop=3)  # the last process alone is told
    assert [step for step, *_ in losses(parts.out)] == [1, 2, 3]
    launch(2, parts)
    assert losses(parts.out) == losses(tmp_path / "whole")
    ours, theirs = tensors(parts.out), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    told = (parts.out / "events.jsonl").read_text()
    assert told.count("the detector is in") == 1  # the main process alone writes


def test_a_batch_that_cannot_be_shared_out_is_refused(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "own_share", lambda: Share(0, 3))
    with pytest.raises(UserError, match="--batch 4 does not divide by 3 processes: give 3"):
        train.main(settings(shards, tmp_path / "run"))
    with pytest.raises(UserError, match="--alignment-batch 2"):
        train.main(settings(shards, tmp_path / "run", batch=6))
    assert not (tmp_path / "run").exists()


def test_checkpointed_blocks_have_the_same_gradient():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for recomputed in (False, True):
        detector = SegformerDetector(SegformerConfig(variant="mit_b0"), seed=1).train()
        if recomputed:
            checkpoint_blocks(detector)
        torch.manual_seed(3)  # of stochastic depth
        detector(images).square().mean().backward()
        found.append([p.grad for p in detector.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-9)


def test_checkpointed_blocks_hold_less():
    held = []
    for recomputed in (False, True):
        detector = SegformerDetector(SegformerConfig(variant="mit_b0"), seed=1).train()
        if recomputed:
            checkpoint_blocks(detector)
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.__setitem__(x.data_ptr(), x.nbytes) or x, lambda x: x
        ):
            detector(torch.rand(1, 3, 128, 128))
        held.append(sum(kept.values()))
    assert held[1] < 0.7 * held[0]


def test_smp_has_no_checkpointed_blocks(shards, tmp_path):
    with pytest.raises(ValueError, match="needs the backend transformers"):
        settings(shards, tmp_path, backend="smp", variant="mit_b0", checkpoint_blocks=True)


@pytest.mark.parametrize("name", ["mit-b2-12gb", "mit-b5-24gb", "mit-b5-80gb"])
def test_presets_are_settings(name, tmp_path):
    assert name in presets(train.Config)
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    config = load_config(train.Config, train.Config.presets / f"{name}.yaml", words)
    assert config.input_size == 512 and config.variant == name[:6].replace("-", "_")
    text = (train.Config.presets / f"{name}.yaml").read_text()
    assert text.startswith("# ") and "not measured" in text


def test_the_segmentation_preset_is_the_published_size_with_hard_labels(tmp_path):
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    pal, b5 = (
        load_config(train.Config, train.Config.presets / f"{name}.yaml", words)
        for name in ("pal-24gb", "mit-b5-24gb")
    )
    assert pal.loss == "binary" and b5.loss == "mse"
    assert pal.model_copy(update={"loss": "mse"}) == b5


def test_a_preset_is_found_by_its_bare_name(tmp_path, capsys):
    words = ["--config", "mit-b5-24gb", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        run_program(train.main, train.Config, words)
    assert "no data folder" in capsys.readouterr().err
