"""Every setting of a correction; needs no torch."""

from pathlib import Path

from pydantic import Field

import core.config
from detector.names import DynamicsVariant
from treat.names import DYNAMICS, CorrectorName


class Config(core.config.Config):
    """Same prompts, same seeds: a base model's images before and after a corrector."""

    base: str
    """Pipeline folder or Hub id of the base model; of any family, with prompts or without."""
    corrector: CorrectorName = "asced"
    """What corrects: `asced`; its table's baselines `state_replacement`, `score_clipping`, `bayes`
    (BayesDiff), `sargd` and `trajectory` (PAL + TTC); `guide` (DIAMOND). docs/sister_methods.md
    says what each does."""
    detector: str = DYNAMICS
    """What finds: `score_dynamics` (nothing is trained), `bayes` (BayesDiff's variance, with
    --real), or a detector's folder. `sargd`, `trajectory` and `guide` need a folder;
    `score_clipping` and the corrector `bayes` take none."""
    variant: DynamicsVariant = "paper"
    """asced and score_dynamics read the weighted scores as the paper writes them, the changes of
    x0-hat that it means (`x0`), or 8-bit pictures of x0-hat as its released code does."""
    set: tuple[str, ...] = ()
    """The corrector's own numbers, NAME=VALUE each (gamma=0.7 t_d=0.9)."""
    calibration: Path | None = None
    """asced, state_replacement: T_d, the score bank and (asced) gamma, as `diffdoctor calibrate`
    found them."""
    real: Path | None = None
    """bayes: real images that the last layer is fitted on; with captions (`treat --offline`) where
    the base reads prompts."""
    judges: tuple[str, ...] = ()
    """Detectors that read the images, NAME=PATH each; the first judges. Without one a
    folder that leads (--detector) judges itself, which flatters it."""
    prompts: Path | None = None
    """Prompts: .txt (one a line), or .jsonl, .csv or .parquet with `prompt`. None for a base that
    reads none."""
    out: Path = Path("runs/correct")
    """Run folder; the same command again takes up where it stopped."""
    n: int | None = Field(default=None, ge=2)
    """Images (default: one for every prompt, 16 without prompts); prompts repeat with new seeds."""
    seed: int = 0
    """Image i is drawn with seed hash(seed, i)."""
    sampling_steps: int = Field(default=25, ge=2)
    """Sampler steps; the paper's 25."""
    height: int | None = Field(default=None, ge=1)
    """Pixels. None: the base's own."""
    width: int | None = Field(default=None, ge=1)
    """Pixels. None: the base's own."""
    batch: int = Field(default=8, ge=1)
    """Images drawn and judged at once."""
    shown: int = Field(default=12, ge=0)
    """Pairs in the report and on the sheet: always the first ones, never chosen."""
    device: str = "auto"
    """Where the base model runs: `auto`, or a torch device."""
