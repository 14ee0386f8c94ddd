"""Every number of the demo, in one place: the full one and the quick one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

HARDENED: Mapping[str, Any] = {
    "adversarial": 0.5,
    "adversarial_step": 0.06,
    "patches": 0.3,
    "move": 0,
    "shrink": 0,
}
"""Half of each batch steps against the detector. No shift and no scale: a hand of another size is
no hand of this world."""


@dataclass(frozen=True)
class Settings:
    """Every number of the demo; the dictionaries are settings of the programs by their names."""

    seed: int = 0
    sampling_steps: int = 6
    labelled: int = 200
    """Labelled images of each grade for the detector."""
    second_labelled: int = 100
    """The same for the second detector, which shares no image with the first."""
    renders: int = 400
    """Valid images for each detector, and as the real images of the treatment."""
    tested: int = 200
    """Held-out images and renders that the detector is measured on."""
    evaluated: int = 300
    """Images of each arm."""
    detector: Mapping[str, Any] = field(
        default_factory=lambda: {
            "steps": 120,
            "batch": 16,
            "warmup": 10,
            "optimizer": "muon",
            "learning_rate": 1e-3,
            "loss": "bce",
            "augmentation": HARDENED,
            "valid_every": 120,
            "ema": 0.9,
        }
    )
    treat: Mapping[str, Any] = field(
        default_factory=lambda: {
            "steps": 60,
            "batch": 16,
            "last": 3,
            "pixel_weight": 0.4,
            "offline_weight": 2.0,
            "lock_weight": 15.0,
            "views": 3,
            "learning_rate": 1e-3,
            "decay": "linear",
            "watch_every": 20,
            "picture_every": 30,
            "checkpoint_every": 20,
        }
    )
    refresh: Mapping[str, Any] = field(
        default_factory=lambda: {
            "refresh_every": 20,
            "refresh_images": 60,
            "refresh_steps": 30,
            "refresh_optimizer": "muon",
            "refresh_rate": 5e-4,
            "refresh_loss": "bce",
            # As above, without mirrored words: a relabelled image has no category.
            "refresh_augmentation": {**HARDENED, "flip": False},
        }
    )
    """How the detector is kept from being deceived while it teaches."""


FULL = Settings()
QUICK = replace(
    FULL,
    labelled=20,
    second_labelled=10,
    renders=60,
    tested=20,
    evaluated=30,
    detector={**FULL.detector, "steps": 8, "warmup": 2, "valid_every": 8},
    treat={**FULL.treat, "steps": 10, "watch_every": 5, "watch_images": 10, "picture_every": 10},
    refresh={**FULL.refresh, "refresh_every": 5, "refresh_images": 10, "refresh_steps": 4},
)
