"""One contract for both libraries: shapes, gradients, freezing, prior, and the same numbers."""

import jaxtyping
import pytest
import torch
from torch import nn

from core.contracts import Detector
from core.errors import UserError
from core.seeds import generator
from detector.key_layouts import smp_to_transformers, transformers_to_smp
from detector.maps import upsample
from detector.segformer import (
    SegformerConfig,
    SegformerDetector,
    canonical_state,
    freeze,
    load_canonical_state,
)

MEMBERS = {
    "nano": SegformerConfig(),
    "transformers": SegformerConfig(variant="mit_b0"),
    "smp": SegformerConfig(backend="smp", variant="mit_b0"),
}
STRIDE = {"nano": 2, "transformers": 4, "smp": 4}


@pytest.fixture(scope="module", params=MEMBERS)
def member(request):
    return request.param, SegformerDetector(MEMBERS[request.param]).eval()


def test_contract(member):
    name, detector = member
    images = torch.rand(2, 3, 64, 96)
    maps = detector(images)
    assert isinstance(detector, Detector) and detector.differentiable
    assert detector.logits(images).shape == (2, 1, 64 // STRIDE[name], 96 // STRIDE[name])
    assert maps.shape == (2, 1, 64, 96) and maps.dtype == torch.float32
    assert 0 <= maps.min() and maps.max() <= 1


def test_any_size_is_answered_at_its_own_size(member):
    assert member[1](torch.rand(1, 3, 67, 41)).shape == (1, 1, 67, 41)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.rand(3, 64, 64), torch.rand(1, 4, 64, 64)],
    ids=["whole numbers", "no batch", "four channels"],
)
def test_what_cannot_be_images_is_refused(member, images, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    with pytest.raises(UserError, match=r"float images in \[0, 1\] of shape \(b, 3, h, w\), not"):
        member[1](images)


def test_the_shorter_side_is_resized_and_small_images_may_be_enlarged():
    config = SegformerConfig(variant="mit_b0", input_size=64, upscale=4)
    detector = SegformerDetector(config).eval()
    images = torch.rand(1, 3, 128, 180)
    assert detector.logits(images).shape == (1, 1, 64, 88)
    assert detector(images).shape == (1, 1, 128, 180)


def test_the_first_map_is_the_prior(member):
    assert member[1](torch.rand(2, 3, 64, 64)).mean().item() == pytest.approx(0.03, rel=0.25)


def test_frozen_gradient_reaches_the_image_but_not_the_detector(member):
    detector = SegformerDetector(member[1].config)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    freeze(detector)(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in detector.parameters())


def test_frozen_batch_statistics_stay(member):
    before = SegformerDetector(member[1].config)
    norm = next(m for m in before.modules() if isinstance(m, nn.BatchNorm2d))
    start = norm.running_mean.clone()
    freeze(before).train()(torch.rand(2, 3, 64, 64))
    assert torch.equal(norm.running_mean, start)
    control = SegformerDetector(member[1].config).train()
    moved = next(m for m in control.modules() if isinstance(m, nn.BatchNorm2d))
    control(torch.rand(2, 3, 64, 64))
    assert not torch.equal(moved.running_mean, start)


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    first = canonical_state(SegformerDetector(SegformerConfig(), seed=5))
    torch.manual_seed(2)
    second = canonical_state(SegformerDetector(SegformerConfig(), seed=5))
    other = canonical_state(SegformerDetector(SegformerConfig(), seed=6))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    SegformerDetector(SegformerConfig(), seed=5)
    assert torch.equal(torch.rand(1), expected)


def test_both_libraries_compute_the_same_logits():
    ours = SegformerDetector(MEMBERS["smp"]).eval()
    with torch.no_grad():  # away from the start values, or swapped biases would not show
        for tensor in ours.network.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.02 * torch.rand(tensor.shape, generator=generator(tensor.numel()))
    theirs = SegformerDetector(MEMBERS["transformers"], seed=9).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        apart = (ours.logits(images) - theirs.logits(images)).abs().max()
        load_canonical_state(theirs, canonical_state(ours))
        gap = (ours.logits(images) - theirs.logits(images)).abs().max()
    assert apart > 1e-2 and gap < 1e-5


@pytest.mark.parametrize("variant", ["mit_b0", "mit_b1"])
def test_layouts_convert_both_ways(variant):
    ours = SegformerDetector(SegformerConfig(backend="smp", variant=variant))
    theirs = SegformerDetector(SegformerConfig(variant=variant)).network.state_dict()
    state = ours.network.state_dict()
    renamed = smp_to_transformers(state)
    assert {k: t.shape for k, t in renamed.items()} == {k: t.shape for k, t in theirs.items()}
    back = transformers_to_smp(renamed, list(state))
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_an_unknown_key_is_refused():
    with pytest.raises(KeyError, match=r"encoder\.block1\.0\.attn\.query"):
        smp_to_transformers({"encoder.block1.0.attn.query.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "config", [*MEMBERS.values(), SegformerConfig(backend="smp", variant="resnet18")]
)
def test_the_head_computes_what_the_library_computes(config):
    detector = SegformerDetector(config, seed=2).eval()
    images = torch.rand(2, 3, 64, 96, generator=generator(1))
    normalised = (images - detector.mean) / detector.std
    with torch.no_grad():
        for norm in detector.network.modules():  # as after training, or the mixing hides in noise
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.uniform_(-0.1, 0.1)
                norm.running_var.uniform_(0.01, 0.1)
        theirs = detector.network(normalised)
        ours = detector.logits(images)
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.logits
    assert ours.std() > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_upsample_does_not_align_corners():
    logits = torch.tensor([[[[0.0, 1.0]]]])
    assert upsample(logits, (1, 4)).flatten().tolist() == pytest.approx([0, 0.25, 0.75, 1])


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        (SegformerConfig(variant="nanno"), "'nano'"),
        (SegformerConfig(variant="mit_b9"), "mit_b"),
        (SegformerConfig(backend="smp", variant="nano"), "--backend transformers"),
        (SegformerConfig(backend="smp", variant="resnet1"), "resnet1"),
    ],
)
def test_unknown_variants_name_the_cure(config, cure):
    with pytest.raises(UserError, match=cure):
        SegformerDetector(config)


def test_another_encoder_of_smp():
    detector = SegformerDetector(SegformerConfig(backend="smp", variant="resnet18")).eval()
    assert detector(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
