"""Several detectors as one folder: maps of all kinds combined, taken by every program."""

import json

import pytest
import torch

from core.config import run_program
from core.errors import UserError
from core.images import write_image
from detector import combine, diagnose, evaluate, sanity
from detector.ensemble import Ensemble
from detector.flaw_map import FlawMap, Highlighter, HighlighterConfig
from detector.segformer import SegformerConfig, SegformerDetector, freeze
from detector.storage import (
    TENSORS,
    digest,
    load_detector,
    open_detector,
    read_description,
    save_detector,
    save_highlighter,
    untrained,
)
from tests.detector.toy import toy_shards

SIDE = 64


def images(n=2, seed=0):
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A SegFormer of either library and a flaw highlighter, loud enough to differ."""
    place = tmp_path_factory.mktemp("detectors")
    for i, config in enumerate(
        (SegformerConfig(prior=0.3), SegformerConfig(backend="smp", variant="mit_b0", prior=0.2))
    ):
        save_detector(SegformerDetector(config, seed=i), place / f"s{i}", {})
    highlighter = Highlighter(HighlighterConfig(variant="test_resnet", hidden=8))
    save_highlighter(highlighter, place / "h", {})
    return [place / name for name in ("s0", "s1", "h")]


def combined(folders, out, **changes):
    combine.main(combine.Config(detectors=tuple(folders), out=out, **changes))
    return open_detector(out)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_the_folder_holds_all_and_combines_their_maps(folders, tmp_path, how):
    together = combined(folders, tmp_path / "e", combine=how)
    maps = torch.stack([open_detector(folder)(images()) for folder in folders])
    wanted = maps.mean(dim=0) if how == "mean" else maps.amax(dim=0)
    torch.testing.assert_close(together(images()), wanted, rtol=0, atol=0)
    assert (maps[0] - maps[1]).abs().max() > 0.01  # control: the members differ
    assert not together.training
    description = read_description(tmp_path / "e")
    assert description.card["members_sha256"] == [digest(folder) for folder in folders]
    assert "NVIDIA" in description.card["licence"]


def test_the_largest_lets_gradient_pass_to_the_image_and_to_no_weight(folders, tmp_path):
    together = freeze(combined(folders[:2], tmp_path / "e", combine="max"))
    learnt = images().requires_grad_()
    together(learnt).sum().backward()
    assert learnt.grad is not None and learnt.grad.abs().max() > 0
    assert all(weight.grad is None for weight in together.parameters())
    together.train()  # a frozen member stays in eval mode, as alone
    assert not any(one.training for one in together.detectors)
    assert together.differentiable


def test_the_outline_has_the_same_tensors(folders, tmp_path):
    made = combined([folders[0], folders[2]], tmp_path / "e")
    with torch.device("meta"):
        outline = untrained(read_description(tmp_path / "e").config)
    shapes = {name: t.shape for name, t in made.state_dict().items()}
    assert {name: t.shape for name, t in outline.state_dict().items()} == shapes


def test_every_program_takes_it(folders, tmp_path):
    combined(folders[:2], tmp_path / "e")
    store = toy_shards(tmp_path / "store", 6)
    figures = tmp_path / "figures.json"
    given = {"detector": tmp_path / "e", "data": (store,), "json_file": figures}
    evaluate.main(evaluate.Config.model_validate(given))
    assert json.loads(figures.read_text())["detector"] == digest(tmp_path / "e")
    for name in ("real", "drawn"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images(2, seed=len(name))):
            write_image(tmp_path / name / f"{i}.png", image)
    given = {"detector": tmp_path / "e", "real": tmp_path / "real", "samples": tmp_path / "drawn"}
    sanity.main(sanity.Config.model_validate(given))
    given = {"images": tmp_path / "drawn", "detector": tmp_path / "e", "out": tmp_path / "maps"}
    assert not diagnose.main(diagnose.Config.model_validate(given))


def test_what_is_no_ensemble_is_said_with_its_cure(folders, tmp_path):
    combined(folders[:2], tmp_path / "e")
    with pytest.raises(UserError, match="is an ensemble, and a SegFormer is needed"):
        load_detector(tmp_path / "e")
    with pytest.raises(UserError, match="an ensemble itself: name its members"):
        combined([tmp_path / "e", folders[0]], tmp_path / "nested")
    assert not (tmp_path / "nested").exists()
    payload = (tmp_path / "e" / TENSORS).read_bytes()
    (tmp_path / "e" / TENSORS).write_bytes(payload[:-1] + b"x")
    with pytest.raises(UserError, match="damaged"):
        open_detector(tmp_path / "e")


def test_one_detector_is_refused_as_it_was_typed(tmp_path, capsys):
    for words, shown in ((["a/b"], "['a/b']"), ([], "[]")):
        with pytest.raises(SystemExit):
            run_program(combine.main, combine.Config, [*words, "--out", str(tmp_path / "one")])
        said = capsys.readouterr().err
        assert f"is {shown}: an ensemble is of two detectors or more; name another folder" in said


def test_out_takes_the_place_of_nothing_else(folders, tmp_path):
    member, other = tmp_path / "run/detector", tmp_path / "other"
    save_detector(SegformerDetector(SegformerConfig(variant="nano"), seed=1), member, {})
    before = (member / TENSORS).read_bytes()
    for out in (member, member.parent):  # what a training wrote may be named by either
        for named in (member, member.parent):
            with pytest.raises(UserError, match="holds the member .*: name another --out"):
                combined([folders[0], named], out)
    for out in (folders[1], folders[2]):  # detectors that take no part
        with pytest.raises(UserError, match="holds another detector: name another --out"):
            combined([folders[0], member], out)
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files \\('letter.txt'\\): name another --out"):
        combined([folders[0], member], other)
    assert (member / TENSORS).read_bytes() == before
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


def test_the_same_ensemble_may_be_made_again_and_no_other_in_its_place(folders, tmp_path):
    combined(folders[:2], tmp_path / "e")
    combined(folders[:2], tmp_path / "e")
    for changes, members in (({"combine": "max"}, folders[:2]), ({}, folders[1:])):
        with pytest.raises(UserError, match="holds another detector: name another --out"):
            combined(members, tmp_path / "e", **changes)
    assert read_description(tmp_path / "e").config.combine == "mean"


def test_a_member_without_weights_takes_part():
    class Blind:
        differentiable = False

        def __call__(self, images):
            return images[:, :1]

    network = FlawMap(Highlighter(HighlighterConfig(variant="test_resnet", hidden=8))).eval()
    both = Ensemble([Blind(), network])
    torch.testing.assert_close(both(images()), (images()[:, :1] + network(images())) / 2)
    assert not both.differentiable and len(list(both.parameters())) > 0
