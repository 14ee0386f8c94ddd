"""Compiled blocks: the same gradient but for rounding, from code that was compiled."""

import functools
import shutil

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

from base_models.checkpointing import recompute_blocks
from base_models.compilation import FORMS, check_compilation, compile_blocks, repeated
from base_models.quantise import quantise
from core.errors import UserError
from tests.base_models.families import CASES
from tests.chain import inputs, split, with_adapters
from tests.tiny import SIZE
from tests.treat.setting import build, config, losses
from treat import train

CPU = torch.device("cpu")
FP32 = functools.partial(torch.autocast, "cpu", enabled=False)
BLOCKS = ("flux", "sdxl", "sd", "sd3", "kolors")

TORCHAO = ("int8", "fp8")
REFUSED = pytest.mark.xfail(strict=True, raises=BackendCompilerFailed)
compiled = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no compiler")


def gradient(case, backend=None, *, kind="no", recompute=True, checkpointed=False, shaken=0.0):
    """Of the last two of three steps, and how many graphs were compiled for it.

    `shaken`: what the noise is changed by, relatively.
    """
    torch.compiler.reset()
    counters.clear()
    model = CASES[case].model()
    recompute_blocks(model, checkpointed, False)
    with_adapters(model)
    quantise(model.network, kind)
    model.network.train(False).to(CPU)
    if backend:
        compile_blocks(model.network, backend)
    noise, *given = inputs(model, 3, SIZE)
    noise *= 1 + shaken * torch.randn(noise.shape, generator=torch.Generator().manual_seed(9))
    found = split(model, (noise, *given), [1, 2], 1.0, FP32, recompute=recompute)
    return torch.cat([one.flatten() for one in found]), counters["stats"]["unique_graphs"]


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    "case",
    ["sdxl", *(pytest.param(one, marks=pytest.mark.slow) for one in BLOCKS if one != "sdxl")],
)
def test_the_graphs_have_the_same_gradient(case):
    plain, none = gradient(case)
    found, graphs = gradient(case, "aot_eager")
    assert none == 0 and graphs > 0
    assert relative(found, plain) < 1e-5


@compiled
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "ways"),
    [(case, {}) for case in BLOCKS]
    + [("flux", {"recompute": False}), ("flux", {"checkpointed": True})],
)
def test_the_code_has_the_same_gradient_but_for_rounding(case, ways):
    """Tiny UNets are badly conditioned: a last digit of the noise moves their gradient by 1e-3."""
    plain, _ = gradient(case, **ways)
    last_digit = relative(gradient(case, shaken=1e-7, **ways)[0], plain)
    found, graphs = gradient(case, "inductor", **ways)
    assert graphs > 0
    assert 0 < relative(found, plain) < 5 * last_digit


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("kind", [*(pytest.param(k, marks=REFUSED) for k in TORCHAO), "nf4"])
def test_of_quantised_weights_too(kind):
    """Where torchao's pass some day, `treat.settings` need no longer refuse them."""
    pytest.importorskip("torchao")
    pytest.importorskip("bitsandbytes")
    plain, _ = gradient("flux", kind=kind)
    found, graphs = gradient("flux", "inductor", kind=kind)
    assert graphs > 0
    assert relative(found, plain) < 1e-3


@compiled
@pytest.mark.slow
def test_a_treatment_has_the_same_figures_but_for_rounding(tmp_path):
    torch.compiler.reset()
    counters.clear()
    world = build(tmp_path)
    ways = {"sampling_steps": 4, "last": 2, "batch": 2, "checkpoint_blocks": True}
    train.main(config(world, tmp_path / "plain", **ways))
    assert counters["stats"]["unique_graphs"] == 0
    train.main(config(world, tmp_path / "compiled", compile_blocks=True, **ways))
    assert 0 < counters["stats"]["unique_graphs"] < FORMS and not counters["graph_break"]
    for step, figures in losses(tmp_path / "plain").items():
        assert losses(tmp_path / "compiled")[step] == pytest.approx(figures, rel=1e-4)


@pytest.mark.parametrize("case", BLOCKS)
def test_every_family_says_what_it_is_made_of(case):
    network = CASES[case].model().network
    assert repeated(network) & {type(module).__name__ for module in network.modules()}


@pytest.mark.parametrize("kind", TORCHAO)
def test_what_cannot_be_compiled_is_refused(kind, tmp_path):
    config(tmp_path, tmp_path / "run", compile_blocks=True, quantise="nf4")
    with pytest.raises(ValueError, match=f"no gradient past the {kind} weights"):
        config(tmp_path, tmp_path / "run", compile_blocks=True, quantise=kind)


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install"):
        check_compilation(CPU)
    check_compilation(torch.device("cuda"))
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(UserError, match="icpx was not found"):
        check_compilation(CPU)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "icpx" else None)
    check_compilation(CPU)
