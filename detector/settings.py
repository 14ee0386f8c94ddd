"""Every setting of a detector's training, with what cannot go together.

Apart from `detector.train`, so that the training there fits one screen.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

import core.config
from detector.augmentation import Augmentation
from detector.names import LossName, OptimizerName


class Config(core.config.Config):
    """Settings of one detector training."""

    presets: ClassVar[Path | None] = Path(__file__).parent / "presets"

    data: tuple[Path, ...]
    """Shard folders, or folders with images/ and masks/ (and real/ for sound photographs)."""
    out: Path
    """Run folder; the same command resumes it."""
    backend: Literal["transformers", "smp"] = "transformers"
    """Who builds the network: transformers, or segmentation-models-pytorch."""
    variant: str = "nano"
    """`nano` (64x64 images), `mit_b0` .. `mit_b5`; with smp any of its encoders."""
    input_size: int | None = Field(None, ge=8)
    """Shorter side that the network sees; the published detector takes 512."""
    upscale: Literal[1, 2, 4, 8] = 1
    """Enlargement before the network; 4 gives a stride-4 variant a full-resolution map."""
    prior: float | None = Field(None, gt=0, lt=1)
    """Artifact share that the untrained head says; None: the mean of the training labels."""
    init: Path | None = None
    """Detector folder to start from, instead of random weights."""
    size: int | None = Field(None, ge=8)
    """Resize all images to this square; needed where their sizes differ."""

    steps: int = Field(2000, ge=1)
    """Optimizer steps."""
    batch: int = Field(16, ge=1)
    """Images of a step, on all processes together."""
    loss: LossName = "mse"
    """Squared error of the map (the paper's), soft cross-entropy, or for soft labels the focal or
    the Dice loss; `binary` and `binary_focal`: labels cut at .5, as a segmentation detector
    (PAL4VST) learns."""
    optimizer: OptimizerName = "adamw"
    """`muon` learns faster from random weights, `adamw` is the rule for pretrained mit_b*."""
    learning_rate: float = Field(1e-3, gt=0)
    """From random weights (with muon 4e-3); about 6e-5 for a pretrained mit_b5."""
    warmup: int = Field(100, ge=0)
    """Steps in which the rate rises to its peak."""
    decay: Literal["poly", "cosine"] = "poly"
    """How the rate falls from there to zero."""
    power: float = Field(1.0, gt=0)
    """Of `poly`: the rate falls as (1 - t) to this power; 1 is SegFormer's, .9 DeepLab's."""
    weight_decay: float = Field(0.01, ge=0)
    """Of the weights that AdamW moves; Muon's are not decayed."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient; Muon's steps have a size of their own."""
    ema: float = Field(0.995, ge=0, lt=1)
    """Decay of the averaged weights, which are what is measured and kept; 0: none."""
    alignment: float = Field(0.0, ge=0)
    """Weight of teaching the gradient the way to mend (`detector.alignment`), for a detector that
    is to treat: the last few hundred steps, at about 1, after it finds what it should find."""
    alignment_data: tuple[Path, ...] = ()
    """Labelled images whose sound original is known (`references/`), for the alignment alone:
    mixed into `data` they cost precision. Default: those in `data`."""
    alignment_batch: int = Field(12, ge=1)
    """Such images in each step, beside the batch; each costs the memory of a second derivative."""
    alignment_share: float = Field(0.5, gt=0, le=1)
    """Share of these images, in each category the nearest to their originals, that are used: where
    an original shows another gesture than the broken image, it is no mend."""
    alignment_sound: int = Field(6, ge=0)
    """Of the originals of a step so many join its batch as images without artifact."""
    augmentation: Augmentation = Augmentation()
    """How images and labels are varied while training."""
    quotas: dict[str, float] = {}
    """Shares of every batch by source, such as human .3 hard .2 pseudo .4 real .1; sources that are
    not named teach nothing. By default each has what its number gives it."""
    even_categories: bool = False
    """The categories of a source share its part alike, however many images each has."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` computes the network in half precision; weights stay in float32."""
    checkpoint_blocks: bool = False
    """Compute the encoder's blocks again on the way back: less memory, about a third more time."""
    device: str = "auto"
    """`auto`, or a torch device."""
    seed: int = Field(0, ge=0)
    """Of weights, order, augmentation and split."""

    valid_share: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts that is held out and measured on."""
    valid_limit: int = Field(512, ge=1)
    """Measure on at most so many samples."""
    valid_every: int = Field(500, ge=1)
    """Steps between two measurements."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps; what an interruption costs at most."""

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if self.alignment and self.alignment_sound > self.alignment_batch:
            raise ValueError("alignment_sound is more than alignment_batch: lower it")
        if self.alignment_data and not self.alignment:
            raise ValueError("alignment_data without a weight: give alignment, 1 for instance")
        if self.checkpoint_blocks and self.backend == "smp":
            raise ValueError("checkpoint_blocks needs the backend transformers: smp keeps all")
        return self
