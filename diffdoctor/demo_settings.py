"""Every number of the demo, in one place: the full one and the quick one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Every number of the demo; the dictionaries are settings of the programs by their names."""

    seed: int = 0
    sampling_steps: int = 4
    labelled: int = 1000
    """Labelled images of each grade for the detector."""
    second_labelled: int = 500
    """The same for the second detector, which shares no image with the first."""
    renders: int = 1500
    """Valid images for each detector, and as the real images of the treatment."""
    tested: int = 300
    """Held-out images and renders that the detector is measured on."""
    evaluated: int = 300
    """Images of each arm."""
    detector: Mapping[str, Any] = field(
        default_factory=lambda: {"steps": 600, "batch": 32, "valid_every": 300}
    )
    treat: Mapping[str, Any] = field(
        default_factory=lambda: {
            "steps": 120,
            "batch": 16,
            "last": 1,
            "selection": "area",
            "pixel_weight": 20.0,
            "offline_weight": 2.0,
            "lock_weight": 5.0,
            "learning_rate": 3e-4,
            "watch_every": 20,
            "picture_every": 40,
            "checkpoint_every": 40,
        }
    )


FULL = Settings()
QUICK = replace(
    FULL,
    labelled=200,
    second_labelled=100,
    renders=300,
    tested=60,
    evaluated=60,
    detector={"steps": 120, "batch": 32, "valid_every": 120, "warmup": 20},
    treat={**FULL.treat, "steps": 20, "watch_every": 10, "picture_every": 20},
)
