"""Every setting of an adapter's export; needs no torch."""

from pathlib import Path
from typing import Literal

import core.config
from treat.names import Architecture


class Config(core.config.Config):
    """Write an adapter as a LoRA file for downstream pipelines, or merged into its base."""

    run: Path
    """Run folder of `diffdoctor treat`, one of its checkpoints, or a LoRA file."""
    out: Path
    """Folder for the file and its card; nothing else may stand in it."""
    step: str = "best"
    """Which checkpoint of a run folder: best (the one that its second detector chose), last or a
    number."""
    scale: float = 1.0
    """Strength: what the adapter changes is multiplied by this."""
    also: tuple[str, ...] = ()
    """PATH=WEIGHT each: further adapters of the same base that are added (their best step)."""
    merge: bool = False
    """Write the whole pipeline with the adapter in its weights, which needs no LoRA loader."""
    single_file: bool = False
    """With --merge, of SDXL: in the folder also one file in the original layout, named after it,
    which ComfyUI and Forge call a checkpoint."""
    base: str | None = None
    """Pipeline folder or Hub id (perhaps owner/name@revision) of the base (default: the run's own):
    what --merge writes into, and what header and card name. With it the bases that runs name are
    not compared."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of the file: half the size, or the masters themselves; merged: of the network's weights."""
    title: str = "DiffDoctor adapter"
    """Shown by model managers."""
    author: str = ""
    """Shown by model managers."""
    license: str = ""
    """Of the adapter; the base model's own holds besides."""
    architecture: Architecture | None = None
    """What the base is (default: what the run's base says; of FLUX, schnell)."""
    base_model: str = ""
    """Hub id for the card (default: the folder's name of the run's base)."""
    evaluation: Path | None = None
    """Run folder of `diffdoctor evaluate`: figures and pictures for the header and the card."""
    arm: str = "adapter"
    """The name that this adapter has there."""
    push: str | None = None
    """Repository (OWNER/NAME) of the Hugging Face Hub that the folder is uploaded to, once it is
    found sound."""
