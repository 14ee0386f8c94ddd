"""Every setting of a self-refining training, with what cannot go together; needs no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

import core.config

Variant = Literal["paper", "input", "target", "centred"]
"""What noise is amplified: see `treat.self_refining.noise`."""
Embedding = Literal["resize", "learned"]
"""How a map reaches the attention: see `treat.self_refining.attention`."""


class Config(core.config.Config):
    """Settings of a self-refining training; the defaults are the paper's where it has any."""

    base: str
    """Pipeline folder of the base; of random weights it is trained from scratch."""
    data: Path
    """Real images: a folder, shards, or Parquet files; with captions, if the base reads text."""
    highlighter: Path | None = None
    """Folder of a flaw highlighter (`detector train-highlighter`); needed where a step refines."""
    out: Path
    """Run folder; the same command resumes it."""
    limit: int | None = Field(None, ge=1)
    """Use at most so many images."""
    height: int | None = Field(None, ge=8)
    """Of the images, in pixels. None: the base's own."""
    width: int | None = Field(None, ge=8)
    """Of the images, in pixels. None: the base's own."""
    steps: int = Field(10_000, ge=1)
    """Updates of both phases; the paper has 500,000."""
    refine_share: float = Field(0.5, ge=0, le=1)
    """Of the steps, the last; .5 is base : refine = 1 : 1, .8 is 1 : 4, .2 is 4 : 1; 0 is plain
    training, the control."""
    cycle: int = Field(100, ge=1)
    """Steps between two maps."""
    forward_weight: float = Field(0.01, ge=0)
    """lambda of the noise; 0 for bases that draw latents."""
    reverse_weight: float = Field(0.025, ge=0)
    """lambda of keys and values."""
    forward: Variant = "paper"
    """eps + lambda M in input and target; as the releases have it, in one of them (`input`,
    `target`); `centred`, ours: as the paper, without the map's mean, which darkens images."""
    embedding: Embedding = "resize"
    """What attention gets of the map: itself, resized; or what a small convolution makes of it."""
    map_images: int = Field(32, ge=1)
    """Images that a map is the mean of."""
    map_steps: int = Field(25, ge=1)
    """Their sampling steps; the paper takes 250."""
    batch: int = Field(16, ge=1)
    """Images of an update."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's highest."""
    warmup: int = Field(0, ge=0)
    """Steps in which the learning rate rises to it."""
    decay: Literal["constant", "poly"] = "constant"
    """The learning rate after that; `poly` falls to zero."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of an update's gradient."""
    ema: float = Field(0.9999, ge=0, lt=1)
    """Decay of the averaged weights, which draw for the maps and are what is kept."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` computes in half precision; the weights stay in float32."""
    device: str = "auto"
    """`auto`, or a torch device."""
    seed: int = Field(0, ge=0)
    """Of noise, order and maps."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps; what an interruption costs at most."""

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if self.refining and self.highlighter is None:
            raise ValueError(
                "refining needs a highlighter: train one (`diffdoctor detector "
                "train-highlighter`), or set refine_share to 0"
            )
        return self

    @property
    def refining(self) -> bool:
        return bool(self.refine_share and (self.forward_weight or self.reverse_weight))

    @property
    def base_steps(self) -> int:
        """Of the first phase."""
        return self.steps - round(self.refine_share * self.steps)
