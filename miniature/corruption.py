"""Valid images in; images with a random patch that breaks the law out, and what was changed.

Unlike `miniature.faults` these need no category: they teach a detector that anything at all may
be wrong. Legend: b batch, h w pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from core.contracts import Images
from miniature.law import SIZE
from miniature.paint import pixel_grid

Patch = Bool[Tensor, "b 1 h w"]
CHANGED = 0.25
"""RGB distance from which a pixel counts as changed, as for planted faults."""
LEAST = 12
"""Changed pixels that a corruption must leave; a smaller one would be no visible fault."""
TRIES = 20


def uniform(b: int, low: float, high: float, g: torch.Generator) -> Tensor:
    """(b, 1, 1) numbers."""
    return low + (high - low) * torch.rand(b, 1, 1, generator=g)


def patch(b: int, g: torch.Generator) -> Patch:
    """An ellipse or a bar of 6 to 20 pixels, turned at random, one in each image."""
    x, y = pixel_grid(b)
    turn = uniform(b, 0.0, torch.pi, g)
    x, y = x - uniform(b, 8.0, SIZE - 8.0, g), y - uniform(b, 8.0, SIZE - 8.0, g)
    u = (torch.cos(turn) * x + torch.sin(turn) * y) / uniform(b, 3.0, 10.0, g)
    v = (torch.cos(turn) * y - torch.sin(turn) * x) / uniform(b, 3.0, 10.0, g)
    round_ = u**2 + v**2 < 1
    square = torch.maximum(u.abs(), v.abs()) < 1
    return torch.where(uniform(b, 0.0, 1.0, g) < 0.5, round_, square)[:, None]


def shifted(images: Images, others: Images, g: torch.Generator) -> Images:
    """The same image some pixels away: doubled, cut and displaced parts."""
    reach = torch.randint(4, 15, (2,), generator=g) * (torch.randint(2, (2,), generator=g) * 2 - 1)
    return images.roll(reach.tolist(), (2, 3))


def swapped(images: Images, others: Images, g: torch.Generator) -> Images:
    """Another image: parts that do not belong here."""
    return others


def mirrored(images: Images, others: Images, g: torch.Generator) -> Images:
    return images.flip(3 if torch.rand((), generator=g) < 0.7 else 2)


def flat(images: Images, others: Images, g: torch.Generator) -> Images:
    """One colour."""
    return torch.rand(len(images), 3, 1, 1, generator=g).expand_as(images)


def noisy(images: Images, others: Images, g: torch.Generator) -> Images:
    """Coarse colour noise, as of a sampling that did not end."""
    coarse = torch.rand(len(images), 3, SIZE // 4, SIZE // 4, generator=g)
    return F.interpolate(coarse, (SIZE, SIZE), mode="bilinear", align_corners=False)


def smeared(images: Images, others: Images, g: torch.Generator) -> Images:
    """Blurred beyond recognition."""
    return F.avg_pool2d(F.pad(images, (5, 5, 5, 5), mode="replicate"), 11, 1)


CORRUPTIONS: dict[str, Callable[[Images, Images, torch.Generator], Images]] = {
    "shifted": shifted,
    "swapped": swapped,
    "mirrored": mirrored,
    "flat": flat,
    "noisy": noisy,
    "smeared": smeared,
}


def corrupt(
    images: Images, others: Images, g: torch.Generator
) -> tuple[Images, Bool[Tensor, "b h w"]]:
    """One random corruption of all the images, elsewhere in each, and the pixels it changed.

    `others` are images to take foreign parts from. Places are drawn anew until something shows.
    """
    names = list(CORRUPTIONS)
    broken, changed = images.clone(), torch.zeros(len(images), SIZE, SIZE, dtype=torch.bool)
    for _ in range(TRIES):
        small = changed.flatten(1).sum(dim=1) < LEAST
        if not small.any():
            break
        kind = names[int(torch.randint(len(names), (), generator=g))]
        mixed = CORRUPTIONS[kind](images, others, g)
        tried = torch.where(patch(len(images), g), mixed, images)
        broken = torch.where(small[:, None, None, None], tried, broken)
        changed = (broken - images).norm(dim=1) > CHANGED
    return broken, changed
