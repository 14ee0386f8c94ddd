"""Images in, where a classifier of real and generated sees the generated out: flaw activation maps.

A flaw highlighter tells real images (1) from generated ones (0); Grad-CAM of *generated* at its
last convolution shows what told it (self-refining diffusion, arXiv 2512.08774; Selvaraju et al.
2017, arXiv 1610.02391, equations 1 and 2). It needs no label but where an image comes from, and
sees whatever sets the generator apart. Images are normalised here and nowhere else: the paper's
release trains on what is not and asks with what is.

Legend: b batch, h w pixels, c y x channels and cells of the last convolution.
"""

import difflib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.contracts import ArtifactMap, Images
from core.errors import UserError
from detector.maps import check_images, upsample
from detector.pickled import read_pickled
from detector.segformer import IMAGENET_MEAN, IMAGENET_STD

POOLED = 7
"""Cells on a side that the fully connected layers see, as VGG has it."""
EPS = 1e-8
VGGS = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")


class HighlighterConfig(BaseModel):
    """What is needed to build the network again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str
    """A VGG of torchvision (`vgg16`, the paper's), or any convolutional network of timm."""
    side: int | None = Field(None, ge=8)
    """Shorter side, in pixels, that the network sees; None: as it is."""
    hidden: int = Field(256, ge=1)
    """Width between the two fully connected layers."""


class Highlighter(nn.Module):
    """Images -> logit of being real; `trunk` ends at the last convolution, `head` follows it."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: HighlighterConfig, seed: int = 0):
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk, channels = _trunk(config.variant)
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(POOLED),
                nn.Flatten(),
                nn.Linear(channels * POOLED**2, config.hidden),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(config.hidden, 1),
            )
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def cells(self, images: Images) -> Float[Tensor, "b c y x"]:
        """What the last convolution says; `UserError` for what cannot be images."""
        check_images(images)
        side = self.config.side
        if side is not None and min(images.shape[-2:]) != side:
            factor = side / min(images.shape[-2:])
            size = [round(length * factor) for length in images.shape[-2:]]
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return self.trunk((images - self.mean) / self.std)

    def forward(self, images: Images) -> Float[Tensor, " b"]:
        return self.head(self.cells(images))[:, 0]


class FlawMap(nn.Module):
    """A highlighter as a `core.contracts.Detector`; the gradient reaches the images."""

    differentiable = True

    def __init__(self, highlighter: Highlighter):
        super().__init__()
        self.highlighter = highlighter

    def forward(self, images: Images) -> ArtifactMap:
        """Each image's flaw map times the probability that it is generated: a real one has none."""
        maps, generated = self._seen(images)
        return maps * generated[:, None, None, None]

    def flaw_maps(self, images: Images) -> ArtifactMap:
        """Grad-CAM of *generated*, over its largest value in each image, as the paper shows it."""
        return self._seen(images)[0]

    def _seen(self, images: Images) -> tuple[ArtifactMap, Float[Tensor, " b"]]:
        """Maps on the images' grid, and the probability of *generated*."""
        learning = torch.is_grad_enabled() and images.requires_grad
        with torch.enable_grad():
            cells = self.highlighter.cells(images)
            if not learning:
                cells = cells.detach().requires_grad_()
            logit = self.highlighter.head(cells)[:, 0]
            (slope,) = torch.autograd.grad(-logit.sum(), cells, create_graph=learning)
            weights = slope.mean((2, 3), keepdim=True)
            found = F.relu((weights * cells).sum(1, keepdim=True))
            maps = found / found.amax((1, 2, 3), keepdim=True).clamp_min(EPS)
            maps, generated = upsample(maps.float(), images.shape[-2:]), torch.sigmoid(-logit)
        return (maps, generated) if learning else (maps.detach(), generated.detach())


def load_pretrained(highlighter: Highlighter, file: Path) -> None:
    """The trunk's weights from a local file of torchvision (VGG) or timm; other layers stay.

    Raises `UserError` for a file that lacks one of them or holds it in another shape.
    """
    try:
        pickled = file.suffix != ".safetensors"
        state = read_pickled(file) if pickled else safetensors.torch.load_file(file)
        theirs, ours = ("features.", "") if highlighter.config.variant in VGGS else ("", "network.")
        wanted = highlighter.trunk.state_dict()
        found = {name: state[theirs + name.removeprefix(ours)] for name in wanted}
        highlighter.trunk.load_state_dict(found)
    except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{file} holds no weights of {highlighter.config.variant} ({error}): name the file "
            "that torchvision or timm publishes for it."
        ) from error


class _Features(nn.Module):
    """A network of timm up to its last feature map."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_features(x)


def _trunk(name: str) -> tuple[nn.Module, int]:
    """Up to the last convolution and its activation; its channels."""
    import timm  # both take seconds, for who asks for them
    import torchvision

    if name in VGGS:
        vgg: Any = getattr(torchvision.models, name)(weights=None)
        return vgg.features[:-1], 512  # the pooling behind it is the head's
    if name not in timm.list_models():
        close = difflib.get_close_matches(name, [*VGGS, *timm.list_models()], n=1)
        cure = f"did you mean {close[0]!r}?" if close else "see timm.list_models()."
        raise UserError(f"there is no network {name!r}; {cure}")
    network: Any = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    try:
        with torch.no_grad():
            shown = network.train(False).forward_features(torch.zeros(1, 3, 64, 64))
    except AssertionError:  # of one size alone, as transformers are
        shown = torch.zeros(0)
    if shown.ndim != 4 or shown.shape[1] != network.num_features:
        raise UserError(f"{name} ends in no map of channels: choose a convolutional network.")
    return _Features(network.train()), network.num_features
