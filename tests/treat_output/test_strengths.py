"""A sweep of strengths draws what the scaled LoRA file draws; 0 and 1 are the arms that exist."""

import json

import pytest
import torch

from core.images import read_images
from tests.treat_output.test_evaluate import dark, files, settings
from treat import evaluate, export, strengths

__all__ = ["files"]


def of(out, arm):
    return read_images(sorted((out / "images" / arm).glob("*.png")))


def test_a_sweep_is_drawn_and_told(files, tmp_path):
    something = files / "something.safetensors"
    given = {"n": 2, "control": None, "adapters": (f"treated={something}",)}
    out = tmp_path / "swept"
    evaluate.main(settings(files, out, strengths=(0.0, 0.5, 1.5), **given), dark)
    arms = json.loads((out / "summary.json").read_text())["arms"]
    assert list(arms) == ["base", "treated", "treated@0.5", "treated@1.5"]
    assert (out / "strengths.png").is_file()
    page = (out / "report.html").read_text()
    assert "treated, by strength: Images with artifacts" in page and ">strength 1.5<" in page
    half = tmp_path / "half"
    options = {"architecture": "schnell", "dtype": "fp32", "scale": 0.5}
    export.main(export.Config(run=something, out=half, **options))
    given["adapters"] = (f"half={half}",)
    evaluate.main(settings(files, tmp_path / "once", **given), dark)
    assert torch.equal(of(out, "treated@0.5"), of(tmp_path / "once", "half"))
    assert not torch.equal(of(out, "treated@0.5"), of(out, "treated"))


@pytest.mark.parametrize("strengths", [(-1.0,), (float("nan"),)])
def test_strengths_that_are_none(files, tmp_path, strengths):
    with pytest.raises(ValueError, match="strengths"):
        settings(files, tmp_path, strengths=strengths)


def test_strengths_that_are_close_have_arms_of_their_own():
    assert strengths.arm("a", 0.5) == "a@0.5" and strengths.arm("a", 2.0) == "a@2"
    assert strengths.arm("a", 0.30000001) != strengths.arm("a", 0.30000002)
