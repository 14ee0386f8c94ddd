"""Every format of a feature network on tiny files: the same vectors as its own library's, names."""

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from core.errors import UserError
from detector.features import (
    DESCRIPTION,
    TENSORS,
    Description,
    SmallFeatures,
    open_features,
    save_features,
)

TIMM = "test_resnet"


def images(n: int = 2, side: int = 40):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def small(folder):
    shape = Description(name="toy features", channels=(4, 8, 5), side=32)
    network = SmallFeatures(shape, seed=1)
    return save_features(network, shape, folder), network


def test_a_folder_of_ours_gives_its_networks_vectors_and_its_name(tmp_path):
    folder, network = small(tmp_path / "f")
    features = open_features(str(folder))
    assert features.name == "toy features" and not any(
        p.requires_grad for p in features.parameters()
    )
    seen = features(images(side=32))
    torch.testing.assert_close(seen, network.eval()(2 * images(side=32) - 1), rtol=5e-3, atol=5e-3)
    assert features(images(side=64)).shape == (2, 5)  # of any size
    payload = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(payload[:-1] + b"x")
    with pytest.raises(UserError, match="damaged"):
        open_features(str(folder))
    (folder / DESCRIPTION).write_text("{}")
    with pytest.raises(UserError, match="no complete feature network"):
        open_features(str(folder))


@pytest.mark.parametrize("pickled", [False, True])
def test_a_timm_folder_gives_what_enters_its_last_layer(tmp_path, pickled):
    torch.manual_seed(0)
    theirs = timm.create_model(TIMM, pretrained=False, num_classes=7).eval()
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 48, 48]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": TIMM, "pretrained_cfg": own}))
    if pickled:
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    features = open_features(str(tmp_path))
    shown = images(side=48)
    mean, std = (torch.tensor(own[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        wanted = theirs.forward_head(theirs.forward_features((shown - mean) / std), pre_logits=True)
    torch.testing.assert_close(features(shown), wanted)
    assert TIMM in features.name and features(images(side=20)).shape == wanted.shape


def test_a_timm_folder_that_is_none_says_what_is_wrong(tmp_path):
    said = tmp_path / "config.json"
    for text, says in (
        ({}, "names no 'architecture'"),
        ({"architecture": "test_resnett"}, "did you mean 'test_resnet'"),
        ({"architecture": TIMM}, "has no model.safetensors or pytorch_model.bin"),
    ):
        said.write_text(json.dumps(text))
        with pytest.raises(UserError, match=says):
            open_features(str(tmp_path))
    save_file({"conv1.0.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no weights of this network"):
        open_features(str(tmp_path))


def test_weights_of_torchvision_give_what_enters_its_last_layer(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v3_small(weights=None).eval()
    file = tmp_path / "mobile.safetensors"
    save_file(theirs.state_dict(), file)
    features = open_features(f"mobilenet_v3_small={file}")
    entering = []
    theirs.classifier[3].register_forward_hook(lambda _, given, out: entering.append(given[0]))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    with torch.no_grad():
        theirs(torchvision.transforms.functional.normalize(images(1, 224), mean, std))
    torch.testing.assert_close(features(images(1, 224)), entering[0])
    assert features.name == "mobilenet_v3_small features (mobile.safetensors)"


class Published(torch.nn.Module):
    """In the manner of the TorchScript Inception: levels of 8 bits, and a word."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8
        vectors = images.float().mean(dim=(2, 3))
        return vectors if return_features else vectors * 0


class Plain(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().amax(dim=(2, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript's own end
@pytest.mark.parametrize("program", [Published(), Plain()])
def test_a_torchscript_file_sees_8_bit_levels(tmp_path, program):
    torch.jit.script(program).save(str(tmp_path / "inception.pt"))
    features = open_features(str(tmp_path / "inception.pt"))
    levels = images().mul(255).round()
    wanted = levels.mean(dim=(2, 3)) if isinstance(program, Published) else levels.amax(dim=(2, 3))
    torch.testing.assert_close(features(images()), wanted)
    assert features.name == "inception.pt features" and len(features.digest) == 64


def test_what_is_none_of_these_names_the_formats(tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(2)}, weights)
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, says in (
        (str(tmp_path / "nowhere"), "does not exist: name a folder"),
        (str(empty), "holds none: name a folder"),
        (str(weights), "no TorchScript file.*resnet50=weights.pth"),
        (f"resnet19={weights}", "did you mean 'resnet1"),
        ("resnet18=nowhere.pth", "nowhere.pth does not exist"),
        (f"squeezenet1_1={weights}", "has no last matrix"),
        (f"alexnet={weights}", "holds no weights of this network"),
    ):
        with pytest.raises(UserError, match=says):
            open_features(source)
