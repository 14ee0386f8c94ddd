"""Every setting of the rounds, with what cannot go together.

Apart from `data_balancing.round_checks`, whose checks of files need torch.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

import core.config
from detector.names import LossName, OptimizerName


class Drawing(core.config.Config):
    """How images are synthesised; see `diffdoctor data synthesize --help`."""

    height: int | None = Field(default=None, ge=8)
    """In pixels. None: the base's own."""
    width: int | None = Field(default=None, ge=8)
    """In pixels. None: the base's own."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Sampler steps: 4 of FLUX schnell, 28 of dev and 25 of any other, unless given."""
    guidance: float | None = Field(default=None, ge=0)
    """Scale of the base's guidance; its own by default."""
    batch: int = Field(default=4, ge=1)
    """Images drawn at once."""
    shard_size: int = Field(default=100, ge=1)
    """Images of a shard."""
    dtype: str = Field(default="fp32", pattern="^(fp32|bf16)$")
    """Of the base's weights."""
    licence: str = ""
    """Of the images, for their records."""


class Training(core.config.Config):
    """How a round's detector learns; see `diffdoctor detector train --help`."""

    init: Literal["teacher", "random"] = "teacher"
    """Go on from the teacher's weights, or learn the same network from random ones."""
    steps: int = Field(default=2000, ge=1)
    """Optimizer steps of a student."""
    batch: int = Field(default=16, ge=1)
    """Images of a step."""
    loss: LossName = "mse"
    """As of `diffdoctor detector train`."""
    optimizer: OptimizerName = "adamw"
    """As of `diffdoctor detector train`."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """About 6e-5 for a mit_b5; from random weights 1e-3."""
    warmup: int = Field(default=100, ge=0)
    """Steps in which the learning rate rises."""
    ema: float = Field(default=0.995, ge=0, lt=1)
    """Decay of the averaged weights, which are what is kept."""
    size: int | None = Field(default=None, ge=8)
    """Resize all images to this square; needed where their sizes differ."""
    quotas: dict[str, float] = {}
    """Shares of every batch by source, such as human .2 hard .2 pseudo .5 real .1: what people
    label in a round is hard, what the teacher labels pseudo, the rest is as --labelled says."""
    valid_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts that is held out and measured on while training."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps; what an interruption costs at most."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` computes in half precision; weights stay in float32."""
    checkpoint_blocks: bool = False
    """Compute the encoder's blocks again on the way back: less memory, more time."""


class Config(core.config.Config):
    """Turns of the loop: which detector and data to begin with, who labels, how much of each."""

    out: Path
    """Folder of all rounds; the same command goes on where it was."""
    detector: Path
    """The first teacher: folder of a detector, or of the run that trained it."""
    labelled: tuple[Path, ...] = Field(min_length=1)
    """Stores of the training data so far."""
    held_out: Path
    """Hard images with masks by people, never trained on: every student is scored on them."""
    base: str
    """The base model that draws: a pipeline folder or a Hub id."""
    pool: Path | None = None
    """Store of images to take the first statistics from; without one, and where none has a tag
    or no category stands out, all categories get as many new images."""
    second_detector: Path | None = None
    """Where it and the teacher disagree is hard; see `diffdoctor data hard-cases`."""
    prompt_list: Path | None = None
    """A .jsonl of prompts with categories; without it, a language model writes."""
    from_records: bool = False
    """Tag by the category that records name; without it, a multimodal model looks."""
    endpoint: str | None = None
    """Address of the OpenAI-compatible server of that model."""
    model: str | None = None
    """Its name there."""
    taxonomy: Path | None = None
    """Categories of your own, as in data_balancing/taxonomy.yaml."""
    annotator: tuple[str, ...] = ()
    """Command that labels a folder (see data_balancing/annotator_command.py); without one, people
    do, and the round waits for them. Words that begin with `--` are given in a --config file."""
    rounds: int = Field(1, ge=1, le=100)
    """Turns at most; the loop ends where a student gets worse."""
    synthetic: int = Field(2000, ge=1)
    """New images of a round."""
    n_per_prompt: int = Field(2, ge=1)
    """Images of each prompt."""
    hard: int = Field(200, ge=0)
    """So many of them are labelled by people, the others by the teacher."""
    draw: Drawing = Drawing()
    """How new images are drawn."""
    train: Training = Training()
    """How students are trained."""
    device: str = "auto"
    """`auto`, or a torch device."""
    seed: int = Field(0, ge=0)
    """Of prompts, images and trainings."""

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("--endpoint and --model go together.")
        if self.endpoint is None and not self.from_records:
            raise ValueError("who tags? give --from-records, or --endpoint with --model.")
        if self.endpoint is None and self.prompt_list is None:
            raise ValueError("who writes? give --prompt-list, or --endpoint with --model.")
        if self.endpoint is not None and self.from_records and self.prompt_list is not None:
            raise ValueError("--endpoint has nothing to do beside --from-records, --prompt-list.")
        if self.synthetic % self.n_per_prompt:
            raise ValueError("--synthetic must be a multiple of --n-per-prompt.")
        return self
