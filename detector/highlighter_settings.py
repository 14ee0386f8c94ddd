"""Every setting of a flaw highlighter's training; needs no torch."""

from pathlib import Path

from pydantic import Field

import core.config


class Config(core.config.Config):
    """Settings of a flaw highlighter's training."""

    data: tuple[Path, ...]
    """Shard folders, or folders with real/ and images/; both kinds are needed, masks are not."""
    out: Path
    """Run folder; the same command resumes it."""
    variant: str = "vgg16"
    """A VGG of torchvision (the paper's is `vgg16`), or a convolutional network of timm."""
    weights: Path | None = None
    """Local file with the network's ImageNet weights, as torchvision or timm publish it (the paper
    starts so). None: random weights."""
    side: int | None = Field(None, ge=8)
    """Shorter side that the network sees; 224 for ImageNet weights. None: as the images are."""
    hidden: int = Field(256, ge=1)
    """Width between the two fully connected layers."""
    size: int | None = Field(None, ge=8)
    """Resize all images to this square; needed where their sizes differ."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps."""
    batch: int = Field(32, ge=2, multiple_of=2)
    """Images of a step, half of them real."""
    learning_rate: float = Field(1e-4, gt=0)
    """The highest; see `warmup`."""
    warmup: int = Field(50, ge=0)
    """Steps in which the rate rises to it; then it falls to zero."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    mixed_precision: bool = False
    """Compute in bf16 where that is safe."""
    device: str = "auto"
    """`auto`, or a torch device."""
    seed: int = Field(0, ge=0)
    """Of weights, order, augmentation and split."""
    valid_share: float = Field(0.1, gt=0, lt=1)
    """Share of the prompts and photographs that is held out and measured on."""
    valid_limit: int = Field(512, ge=2)
    """Measure on at most so many images."""
    valid_every: int = Field(250, ge=1)
    """Steps between two measurements."""
    checkpoint_every: int = Field(250, ge=1)
    """Steps; what an interruption costs at most."""
