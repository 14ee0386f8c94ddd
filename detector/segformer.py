"""Images in, artifact map out: one SegFormer contract over two libraries.

`logits` holds whatever the library computes at its stride; the upsample to the image
(bilinear, `align_corners=False`) and the sigmoid are shared, because smp's own upsample
(`align_corners=True`) differs by up to a deviation of the logits.

Legend: b batch, h w pixels of the image, s stride of the logits.
"""

import difflib
import math
from typing import Any, Literal, TypeVar

import torch
import transformers
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from core.contracts import ArtifactMap, Images
from core.errors import UserError
from detector.head import smp_logits, transformers_logits
from detector.key_layouts import smp_to_transformers, transformers_to_smp
from detector.maps import check_images, upsample

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# transformers: 1e-5 everywhere; smp: 1e-6 inside its blocks. One value, or the two differ by 1e-4.
LAYER_NORM_EPS = 1e-5

M = TypeVar("M", bound=nn.Module)


def _mit(widths: tuple[int, ...], depths: tuple[int, ...], decoder: int) -> dict:
    """The published MiT shapes: stride 4, then 2, 2, 2."""
    return {
        "patch_sizes": [7, 3, 3, 3],
        "strides": [4, 2, 2, 2],
        "sr_ratios": [8, 4, 2, 1],
        "mlp_ratios": [4, 4, 4, 4],
        "num_attention_heads": [1, 2, 5, 8],
        "hidden_sizes": list(widths),
        "depths": list(depths),
        "decoder_hidden_size": decoder,
        "drop_path_rate": 0.1,
    }


_SMALL, _LARGE = (32, 64, 160, 256), (64, 128, 320, 512)
VARIANTS: dict[str, dict] = {
    # Made for 64x64 images: the first stage halves them, where the published one quarters, and
    # brushed labels are five pixels wide or more; one that keeps every pixel costs twice the time.
    "nano": {
        "patch_sizes": [7, 3, 3, 3],
        "strides": [2, 2, 2, 2],
        "sr_ratios": [4, 2, 1, 1],
        "mlp_ratios": [2, 2, 4, 4],
        "num_attention_heads": [1, 2, 4, 6],
        "hidden_sizes": [32, 64, 128, 192],
        "depths": [2, 2, 2, 2],
        "decoder_hidden_size": 64,
        "drop_path_rate": 0.0,
    },
    "mit_b0": _mit(_SMALL, (2, 2, 2, 2), 256),
    "mit_b1": _mit(_LARGE, (2, 2, 2, 2), 256),
    "mit_b2": _mit(_LARGE, (3, 4, 6, 3), 768),
    "mit_b3": _mit(_LARGE, (3, 4, 18, 3), 768),
    "mit_b4": _mit(_LARGE, (3, 8, 27, 3), 768),
    "mit_b5": _mit(_LARGE, (3, 6, 40, 3), 768),
}


class SegformerConfig(BaseModel):
    """What is needed to build the network again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["transformers", "smp"] = "transformers"
    variant: str = "nano"
    """`nano`, `mit_b0` .. `mit_b5`; with smp also the name of any of its encoders."""
    input_size: int | None = Field(None, ge=8)
    """Shorter side, in pixels, that the network sees (512 for the published one); None: as is."""
    upscale: Literal[1, 2, 4, 8] = 1
    """Bilinear enlargement before the network; a stride-4 variant with 4 keeps full resolution."""
    prior: float = Field(default=0.03, gt=0, lt=1)
    """Mean artifact share of the data; the head's bias starts at its logit."""


class SegformerDetector(nn.Module):
    """SegFormer as a `core.contracts.Detector`; final.

    `network` is the library's module, `stride` that of its logits against the image. A new one
    draws its weights from `seed` alone. Raises `UserError` for a variant nobody has.
    """

    differentiable = True
    mean: Tensor
    std: Tensor

    def __init__(self, config: SegformerConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self.frozen = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = BACKENDS[config.backend](config.variant)
            _start_at_prior(_classifier(self.network), config.prior)
        for norm in self.network.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.eps = LAYER_NORM_EPS
        # On CPU the decode head is bound by memory traffic, and this layout has less of it.
        self.network.to(memory_format=torch.channels_last)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @property
    def multiple(self) -> int:
        """Sides of the network's input are multiples of this (its coarsest cell)."""
        shape = VARIANTS.get(self.config.variant, VARIANTS["mit_b0"])
        return max(1, math.prod(shape["strides"]) // self.config.upscale)

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The size in pixels that an image is resized to before the network (often its own)."""
        size, m = self.config.input_size, self.multiple
        scale = 1.0 if size is None else size / min(height, width)
        return max(1, round(height * scale / m)) * m, max(1, round(width * scale / m)) * m

    def logits(self, images: Images) -> Float[Tensor, "b 1 y x"]:
        """Logits at the network's stride: `(b, 1, h/s, w/s)` for an image of working size h, w.

        Raises `UserError` for what has another shape or kind than images.
        """
        check_images(images)
        return self.logits_at(_resize(images, self.working_size(*images.shape[-2:])))

    def logits_at(self, images: Images) -> Float[Tensor, "b 1 y x"]:
        """The same of images that have a working size already."""
        x = images
        if self.config.upscale > 1:
            x = F.interpolate(x, scale_factor=float(self.config.upscale), mode="bilinear")
        x = (x - self.mean) / self.std
        compute = LOGITS[self.config.backend]
        return compute(self.network, x.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Images) -> ArtifactMap:
        """Probability of artifact for every pixel of the images given, whatever their size."""
        return torch.sigmoid(upsample(self.logits(images).float(), images.shape[-2:]))

    def train(self, mode: bool = True) -> "SegformerDetector":
        """A frozen detector stays in eval mode: batch statistics must not follow the generator."""
        return super().train(mode and not self.frozen)


def freeze(module: M) -> M:
    """No gradient to the weights, eval mode for good; gradient still reaches the images."""
    module.requires_grad_(False)
    for part in module.modules():  # an ensemble has several
        if isinstance(part, SegformerDetector):
            part.frozen = True
    return module.eval()


def checkpoint_blocks(detector: SegformerDetector) -> None:
    """Keep only what enters each block of the encoder while training (Chen et al. 2016, arXiv
    1604.06174); transformers' own. Raises `UserError` for smp, which has none."""
    check_checkpointing(detector.config.backend)
    network: Any = detector.network
    network.activation_checkpointing_enable({"use_reentrant": False})


def check_checkpointing(backend: str) -> None:
    if backend != "transformers":
        raise UserError("smp's encoders keep all that they compute: take --backend transformers.")


def canonical_state(detector: SegformerDetector) -> dict[str, Tensor]:
    """Weights and batch statistics by transformers' names (smp's own for its other encoders)."""
    state = detector.network.state_dict()
    return smp_to_transformers(state) if _is_mit_of_smp(detector.config) else dict(state)


def load_canonical_state(detector: SegformerDetector, state: dict[str, Tensor]) -> None:
    """The inverse of `canonical_state`; raises `KeyError` or `RuntimeError` where they differ."""
    if _is_mit_of_smp(detector.config):
        extra = set(state) - set(canonical_state(detector))
        if extra:
            raise KeyError(f"unexpected tensors: {', '.join(sorted(extra)[:3])}")
        state = transformers_to_smp(state, list(detector.network.state_dict()))
    # nn.Module's own method: smp's encoder overrides it with a narrower one, but only below.
    detector.network.load_state_dict(state)


def _is_mit_of_smp(config: SegformerConfig) -> bool:
    return config.backend == "smp" and config.variant in VARIANTS


def transformers_config(variant: str) -> transformers.SegformerConfig:
    """One of `VARIANTS` in transformers' words."""
    return transformers.SegformerConfig(
        num_labels=1,  # pyright: ignore[reportCallIssue]
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        **VARIANTS[variant],
    )


def _transformers_network(variant: str) -> nn.Module:
    if variant not in VARIANTS:
        raise UserError(_unknown_variant(variant, list(VARIANTS)))
    return transformers.SegformerForSemanticSegmentation(transformers_config(variant))


def _smp_network(variant: str) -> nn.Module:
    import segmentation_models_pytorch as smp  # with timm two seconds, for who asks for it

    encoders = smp.encoders.get_encoder_names()
    if variant == "nano":
        raise UserError(
            "smp has no 'nano' encoder; use --backend transformers, or mit_b0 with --upscale 4."
        )
    if variant not in encoders and not variant.startswith("tu-"):
        raise UserError(_unknown_variant(variant, list(encoders)))
    width = VARIANTS[variant]["decoder_hidden_size"] if variant in VARIANTS else 256
    # upsampling=1: the shared upsample replaces smp's own.
    return smp.Segformer(
        variant, encoder_weights=None, decoder_segmentation_channels=width, upsampling=1
    )


BACKENDS = {"transformers": _transformers_network, "smp": _smp_network}
LOGITS = {"transformers": transformers_logits, "smp": smp_logits}


def _unknown_variant(variant: str, known: list[str]) -> str:
    close = difflib.get_close_matches(variant, known, n=1)
    cure = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(VARIANTS)}."
    return f"there is no detector variant {variant!r}; {cure}"


def _classifier(network: nn.Module) -> nn.Conv2d:
    """The last 1x1 convolution of either library's network."""
    if hasattr(network, "segmentation_head"):  # smp's
        return network.segmentation_head[0]  # pyright: ignore
    return network.decode_head.classifier  # pyright: ignore


def _start_at_prior(classifier: nn.Conv2d, prior: float) -> None:
    """Small weights and the prior's logit: the first map is the mean artifact share everywhere."""
    nn.init.normal_(classifier.weight, std=0.02)
    if classifier.bias is not None:
        nn.init.constant_(classifier.bias, math.log(prior / (1 - prior)))


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
