"""Settings of the augmentations; what they do needs torch (`detector.augment`)."""

from pydantic import Field

import core.config


class Augmentation(core.config.Config):
    """Which augmentations, how often (chance for an image) and how strong."""

    appearance: float = Field(default=0.8, ge=0, le=1)
    """Chance that an image's appearance changes at all; the five below are within it."""
    sharpness: tuple[float, float] = (-1.0, 1.5)
    """-1 is fully blurred (sigma 0.4 to 1.5 px), 0 unchanged, above 0 unsharp masking."""
    contrast: tuple[float, float] = (0.6, 1.6)
    """Smallest and largest factor."""
    saturation: tuple[float, float] = (0.3, 1.7)
    """Smallest and largest factor."""
    brightness: float = 0.15
    """Largest addition to the image's [0, 1], and largest subtraction."""
    noise: float = 0.06
    """Largest deviation of the Gaussian noise."""
    adversarial: float = Field(default=0.25, ge=0, le=1)
    """Share of each batch that takes a step against the detector (costs about as much again)."""
    adversarial_step: float = Field(default=0.03, ge=0)
    """Largest step, in units of the image's [0, 1]."""
    flip: bool = True
    """Mirror half of the images, but those that hold text."""
    unflipped: tuple[str, ...] = ("sign",)
    """Categories that hold text, and words of prompts that ask for it."""
    move: float = Field(default=0.5, ge=0, le=1)
    """Chance of a shift (up to 10 % of the side) and a scale (0.85 to 1.2)."""
    patches: float = Field(default=0.0, ge=0, le=1)
    """Chance that an image gets a patch out of place, labelled as the artifact it is."""
    shrink: float = Field(default=0.3, ge=0, le=1)
    """Chance that an image without artifact is scaled down and padded back."""
    shrink_below: float = 0.1
    """Largest label that counts as without artifact (the paper's is unpublished)."""
    shrink_scale: tuple[float, float] = (0.3, 1.0)
    """Smallest and largest share of the side that it then has."""


NO_AUGMENTATION = Augmentation(appearance=0, adversarial=0, flip=False, move=0, shrink=0)
