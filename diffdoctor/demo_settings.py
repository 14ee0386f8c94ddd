"""What the demo is asked for, and its every number: the full one's and the quick one's.

Needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import core.config

HARDENED: Mapping[str, Any] = {
    "adversarial": 0.5,
    "adversarial_step": 0.06,
    "patches": 0.3,
    "move": 0,
    "shrink": 0,
}
"""Half of each batch steps against the detector. No shift and no scale: a hand of another size is
no hand of this world."""


class Config(core.config.Config):
    """The whole method on two cores, for FLUX in six to ten minutes or (quick) two."""

    out: Path = Path("runs/demo")
    """Folder of all stages; the same command again goes on where it stopped."""
    base: Literal["newest", "sdxl", "kolors"] = "newest"
    """What is treated: the newest FLUX, or the miniature's SDXL or Kolors, which draw in twenty
    steps with guidance and take several times as long."""
    quick: bool = False
    """A tenth of everything: shows the path, proves nothing."""


@dataclass(frozen=True)
class Settings:
    """Every number of the demo; the dictionaries are settings of the programs by their names."""

    seed: int = 0
    base: str = "newest"
    """The base that is treated."""
    older: tuple[str, ...] = ("middle", "oldest")
    """Further bases that the detectors learn from."""
    starts: tuple[str, str] = ("first", "second")
    """The shipped detectors that the demo's two go on from."""
    sampling_steps: int = 4
    labelled: int = 100
    """Labelled images of each of these bases for the detector."""
    second_labelled: int = 50
    """The same for the second detector, which shares no image with the first."""
    redrawn: int = 300
    """Sound renders that the base redraws: they teach the detector's gradient."""
    renders: int = 300
    """Valid images for each detector."""
    real: int = 1000
    """Valid images as the real ones of the treatment: few are a poor sample of the law."""
    tested: int = 200
    """Held-out images and renders that the detector is measured on."""
    evaluated: int = 300
    """Images of each arm."""
    detector: Mapping[str, Any] = field(
        default_factory=lambda: {
            "steps": 45,
            "batch": 16,
            "warmup": 10,
            "optimizer": "muon",
            "learning_rate": 7e-4,
            "loss": "bce",
            "augmentation": HARDENED,
            "valid_every": 45,
            "ema": 0.9,
        }
    )
    alignment: float = 0.7
    """Weight of teaching the gradient of the detector that treats."""
    treat: Mapping[str, Any] = field(
        default_factory=lambda: {
            "steps": 80,
            "batch": 16,
            "last": 1,  # a quarter of the steps
            "recompute": False,
            "selection": "root",  # heals more in as many updates: docs/numbers-earlier.md
            "pixel_weight": 2.0,
            "pixel_penalty": "log",  # a sure detector's probability has little gradient
            "threshold": 0.1,  # at .5, and a lock of 90, it heals less than the paper's recipe
            "offline_weight": 1.0,
            "lock_weight": 45.0,
            "lock_inside": 1.0,  # else a smear becomes whatever the detector minds least
            "learning_rate": 1.4e-3,
            "decay": "linear",
            "watch_every": 20,
            "watch_images": 40,  # each is judged at every look
            "picture_every": 40,
            "checkpoint_every": 20,
        }
    )
    refresh: Mapping[str, Any] = field(
        default_factory=lambda: {
            "refresh_every": 30,
            "refresh_images": 100,
            "refresh_steps": 40,
            "refresh_optimizer": "muon",
            "refresh_rate": 1e-3,
            "refresh_loss": "bce",
            # As above, but never mirrored: so it was measured, before prompts told where words are.
            "refresh_augmentation": {**HARDENED, "flip": False},
        }
    )
    """How the detector is kept from being deceived while it teaches."""


def quick(settings: Settings) -> Settings:
    """A fifth of the labels, and about a tenth of everything else."""
    return replace(
        settings,
        labelled=settings.labelled // 5,
        second_labelled=settings.second_labelled // 5,
        redrawn=40,
        renders=60,
        real=60,
        tested=20,
        evaluated=30,
        detector={**settings.detector, "steps": 8, "warmup": 2, "valid_every": 8},
        treat={
            **settings.treat,
            "steps": 10,
            "watch_every": 5,
            "watch_images": 10,
            "guard": "off",  # it needs 16 images
            "picture_every": 10,
        },
        refresh={
            **settings.refresh,
            "refresh_every": 5,
            "refresh_images": 10,
            "refresh_steps": 4,
        },
    )


FULL = Settings()
QUICK = quick(FULL)
UNET: Mapping[str, Any] = {
    "older": (),
    "sampling_steps": 20,
    "labelled": 300,
    "second_labelled": 150,
    "treat": {**FULL.treat, "last": 5, "learning_rate": 7e-4},
}
"""What a base with a UNet, twenty steps and guidance has otherwise."""
OF_BASE: Mapping[str, Settings] = {
    "newest": FULL,
    "sdxl": replace(
        FULL,
        base="sdxl",
        starts=("sdxl", "second"),
        # With 1 the sky behind its bicycles turns blue: docs/numbers.md
        **{**UNET, "treat": {**UNET["treat"], "offline_weight": 2.0}},
    ),
    "kolors": replace(FULL, base="kolors", starts=("kolors", "second"), **UNET),
}
