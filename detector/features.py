"""Images in, a vector of features each out: what two sets of images are compared by.

A set of figures is only as good as the network behind it, so every network has a name that goes
into every output. Read are, all from local files:

- a folder with `features.json` (`miniature/features`, or `diffdoctor miniature features`);
- a folder as timm's networks are published: `config.json` with its `architecture`, and
  `model.safetensors` or `pytorch_model.bin`;
- NAME=FILE, a network of torchvision and the weights that it publishes (`resnet50=resnet50.pth`);
- a TorchScript file (`inception-2015-12-05.pt`): 8-bit images in, features out; asked for
  `return_features` where it knows the word. It is a program: take it from whom you trust.

Of networks that classify, the features are what enters the last layer.

Legend: b batch, h w pixels, d features.
"""

import difflib
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from core.contracts import Images
from core.errors import UserError
from core.storage import read_json, sha256_file, write_atomic
from detector.pickled import read_pickled
from detector.segformer import freeze

TENSORS, DESCRIPTION = "features.safetensors", "features.json"
TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INCEPTIONS = ("inception_v3", "googlenet")
"""Ported from TensorFlow, whose normalisation they take back by themselves."""
FORMATS = (
    "name a folder with features.json, a timm folder (config.json and its weights), NAME=FILE of "
    "torchvision, or a TorchScript file"
)
Vectors = Float[Tensor, "b d"]


class Description(BaseModel):
    """What `features.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """How every output calls the figures: never plain FID, which is Inception's."""
    channels: tuple[int, ...] = Field(default=(32, 64, 96, 64), min_length=1)
    """Of the convolutions; all but the last halve the image, the last one's are the features."""
    side: int = Field(default=64, ge=8)
    """Pixels on a side that the network sees."""
    sha256: str = ""
    """Of the tensors."""
    card: dict[str, Any] = {}


@final
class SmallFeatures(nn.Module):
    """A few convolutions, and their mean over the image: the network of a `features.json`.

    As Inception's, the features say what there is rather than where; each has unit variance over
    the images that taught it.
    """

    def __init__(self, shape: Description, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for i, given in enumerate(shape.channels):
                taken = shape.channels[i - 1] if i else 3
                stride = 1 if i == len(shape.channels) - 1 else 2
                layers += [nn.Conv2d(taken, given, 3, stride, 1), nn.BatchNorm2d(given), nn.SiLU()]
            self.trunk = nn.Sequential(*layers)
            self.scale = nn.BatchNorm1d(shape.channels[-1], affine=False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Vectors:
        """Of images about 0."""
        return self.scale(self.trunk(images).mean(dim=(2, 3)))


@final
class Features(nn.Module):
    """Any network behind one call: images in [0, 1] of any size -> vectors; frozen."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        name: str,
        digest: str,
        side: tuple[int, int] | None,
        mean: Sequence[float] = (0.5,) * 3,
        std: Sequence[float] = (0.5,) * 3,
    ):
        super().__init__()
        self.network, self.name, self.digest, self.side = network, name, digest, side
        for buffer, values in (("mean", mean), ("std", std)):
            self.register_buffer(buffer, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        freeze(self)

    @torch.no_grad()
    def forward(self, images: Images) -> Vectors:
        if self.side is not None and images.shape[-2:] != self.side:
            size = list(self.side)
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return self.network((images - self.mean) / self.std).flatten(1).float()


def save_features(network: SmallFeatures, shape: Description, folder: Path) -> Path:
    """Write the folder, the weights in half precision and the description last; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    payload = safetensors.torch.save({name: _halved(tensor) for name, tensor in state.items()})
    said = shape.model_copy(update={"sha256": hashlib.sha256(payload).hexdigest()})
    write_atomic(folder / TENSORS, payload)
    write_atomic(folder / DESCRIPTION, (said.model_dump_json(indent=2) + "\n").encode())
    return folder


def open_features(source: str) -> Features:
    """Whatever `source` names, of the formats above; raises `UserError` with the cure."""
    path = Path(source).expanduser()
    if (path / DESCRIPTION).is_file():
        return _ours(path)
    if (path / "config.json").is_file():
        return _timm(path)
    if path.is_file():
        return _script(path)
    name, equals, file = source.partition("=")
    if equals:
        return _torchvision(name, Path(file).expanduser())
    there = "holds none" if path.exists() else "does not exist"
    raise UserError(f"{source} {there}: {FORMATS}.")


def _ours(folder: Path) -> Features:
    try:
        said = Description.model_validate(read_json(folder / DESCRIPTION))
        payload = (folder / TENSORS).read_bytes()
    except (ValidationError, OSError) as error:
        raise UserError(f"{folder} is no complete feature network: copy it again.") from error
    if hashlib.sha256(payload).hexdigest() != said.sha256:
        raise UserError(f"{folder / TENSORS} is damaged: copy the folder again.")
    network = SmallFeatures(said)
    _fill(network, safetensors.torch.load(payload), folder)
    return Features(network, said.name, said.sha256, (said.side, said.side))


def _timm(folder: Path) -> Features:
    import timm  # takes seconds, for who asks for it

    said = read_json(folder / "config.json")
    name = said.get("architecture")
    if not isinstance(name, str):
        raise UserError(f"{folder}/config.json names no 'architecture' of timm: {FORMATS}.")
    if name not in timm.list_models():
        raise UserError(_unknown(name, timm.list_models(), "timm"))
    file = next((folder / one for one in TIMM_WEIGHTS if (folder / one).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no {' or '.join(TIMM_WEIGHTS)}: copy the folder again.")
    network: Any = timm.create_model(name, pretrained=False, num_classes=0)
    state = _weights(file)
    kept = {key: state[key] for key in network.state_dict() if key in state}
    _fill(network, kept, file)  # the file also holds the last layer
    taken = {**network.pretrained_cfg, **said.get("pretrained_cfg", {})}
    side = tuple(taken["input_size"][-2:])
    called = f"{name} features ({folder.name})"
    return Features(network, called, sha256_file(file), side, taken["mean"], taken["std"])


def _torchvision(name: str, file: Path) -> Features:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(_unknown(name, known, "torchvision"))
    if not file.is_file():
        raise UserError(f"{file} does not exist: name the file of {name}'s weights.")
    words = {"transform_input": True, "init_weights": False} if name in INCEPTIONS else {}
    network: Any = torchvision.models.get_model(name, weights=None, **words)
    matrices = [key for key, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not matrices:
        raise UserError(f"{name} has no last matrix to take features before: choose another.")
    _fill(network, _weights(file), file)
    network.set_submodule(matrices[-1], nn.Identity())
    published: Any = torchvision.models.get_model_weights(name)
    taken = published.DEFAULT.transforms()
    side = (taken.crop_size[0], taken.crop_size[0])
    called = f"{name} features ({file.name})"
    return Features(network, called, sha256_file(file), side, taken.mean, taken.std)


@final
class _Script(nn.Module):
    """A TorchScript program as a network; it resizes by itself."""

    def __init__(self, program: Any):
        super().__init__()
        self.program = program
        asked = {argument.name for argument in program.forward.schema.arguments}
        self.words = {"return_features": True} if "return_features" in asked else {}

    def forward(self, images: Images) -> Tensor:
        return self.program(images.mul(255).round().clamp(0, 255).byte(), **self.words)


def _script(file: Path) -> Features:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of TorchScript's own end
            program = torch.jit.load(str(file), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{file} is no TorchScript file: {FORMATS}; a file of weights alone needs its "
            f"network's name before it (resnet50={file.name})."
        ) from error
    network = _Script(program)
    return Features(network, f"{file.name} features", sha256_file(file), None, (0,) * 3, (1,) * 3)


def _weights(file: Path) -> dict[str, Tensor]:
    try:
        pickled = file.suffix != ".safetensors"
        return read_pickled(file) if pickled else safetensors.torch.load_file(file)
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is damaged: copy or download it again.") from error


def _fill(network: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"{file} holds no weights of this network ({lines[min(1, len(lines) - 1)][:160]}): "
            "name another file."
        ) from error


def _halved(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous()


def _unknown(name: str, known: Sequence[str], library: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    cure = f"did you mean {close[0]!r}?" if close else f"it is none of {library}'s."
    return f"there is no network {name!r} in {library}; {cure}"
