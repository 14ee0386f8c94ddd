"""Every setting of an evaluation; needs no torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

import core.config
from base_models.names import Quantisation


class Config(core.config.Config):
    """Same prompts, same seeds: the base model against its adapters."""

    base: str
    """Pipeline folder or Hub id (perhaps owner/name@revision) of the base model."""
    prompts: Path
    """Held-out prompts: .txt (one a line), or .jsonl, .csv or .parquet with `prompt`."""
    adapters: tuple[str, ...] = ()
    """NAME=PATH each: a LoRA file, a run folder of `diffdoctor treat`, or one checkpoint."""
    beside: Path | None = None
    """An adapter that is part of the base in every arm (`treat --beside`)."""
    control: str | None = None
    """The adapter that the others are also compared to."""
    detectors: tuple[str, ...] = ()
    """NAME=PATH each; the first is the judge where nobody better is given."""
    out: Path = Path("runs/evaluate")
    """Run folder; the same command again takes up where it stopped."""
    n: int | None = Field(default=None, ge=2)
    """Images an arm (default: one for every prompt); prompts repeat with new seeds."""
    seed: int = 0
    """Image i is drawn with seed hash(seed, i)."""
    sampling_steps: int | None = Field(default=None, ge=1)
    """Sampler steps. None: those that the run folders were trained with, else 4 of FLUX schnell, 28
    of dev and 25 of any other."""
    guidance: float | None = Field(default=None, ge=0)
    """Scale of the base's guidance; None: its own."""
    height: int | None = Field(default=None, ge=1)
    """Pixels. None: what the run folders were trained with, else the base's own."""
    width: int | None = Field(default=None, ge=1)
    """As height."""
    batch: int = Field(default=8, ge=1)
    """Images drawn and judged at once."""
    strengths: tuple[Annotated[float, Field(ge=0, le=10)], ...] = ()
    """Also draw every adapter at these strengths (0 0.5 1 1.5): a sheet, and curves."""
    step: str = "best"
    """Which checkpoint of a run folder: best (the one that its second detector chose), last or a
    number."""
    shown: int = Field(default=12, ge=0)
    """Pairs in the report and on the sheet: always the first ones, never chosen."""
    device: str = "auto"
    """Where the base model runs: `auto`, or a torch device."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the base model's weights."""
    quantise: Quantisation = "no"
    """The network in fewer bits (`treat --quantise`), for a device that it does not fit."""
