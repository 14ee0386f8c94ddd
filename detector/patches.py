"""Images in; the same with a random patch out of place, and what was changed, out.

Synthetic anomalies, of which there is no end, teach a detector that anything at all may be wrong
(CutPaste, arXiv 2104.04015; DRAEM, arXiv 2108.07610). Lengths are in sixty-fourths of the image's
shorter side. Legend: b batch, h w pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Generator, Tensor

from core.contracts import Images

Patch = Bool[Tensor, "b 1 h w"]
CHANGED = 0.25
"""RGB distance from which a pixel counts as changed."""
LEAST = 12
"""Changed cells of a 64x64 image that a patch must leave; fewer would be no visible fault."""
TRIES = 20
"""Places tried until a patch shows; an image where none does stays as it is."""


def uniform(b: int, low: float, high: float, g: Generator) -> Tensor:
    """(b, 1, 1) numbers."""
    return low + (high - low) * torch.rand(b, 1, 1, generator=g)


def unit(images: Images) -> float:
    """Pixels in a sixty-fourth of the shorter side."""
    return min(images.shape[-2:]) / 64


def patch(images: Images, g: Generator) -> Patch:
    """An ellipse or a bar of 6 to 20 units, turned at random, one in each image."""
    b, (h, w) = len(images), images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    size, turn = unit(images), uniform(b, 0.0, torch.pi, g)
    x = x - uniform(b, 8.0 * size, w - 8.0 * size, g)
    y = y - uniform(b, 8.0 * size, h - 8.0 * size, g)
    u = (torch.cos(turn) * x + torch.sin(turn) * y) / (uniform(b, 3.0, 10.0, g) * size)
    v = (torch.cos(turn) * y - torch.sin(turn) * x) / (uniform(b, 3.0, 10.0, g) * size)
    round_ = u**2 + v**2 < 1
    square = torch.maximum(u.abs(), v.abs()) < 1
    drawn = torch.where(uniform(b, 0.0, 1.0, g) < 0.5, round_, square)
    return drawn[:, None].to(images.device)


def shifted(images: Images, others: Images, g: Generator) -> Images:
    """The same image some units away: doubled, cut and displaced parts."""
    reach = torch.randint(4, 15, (2,), generator=g) * (torch.randint(2, (2,), generator=g) * 2 - 1)
    return images.roll([round(r * unit(images)) for r in reach.tolist()], (2, 3))


def swapped(images: Images, others: Images, g: Generator) -> Images:
    """Another image: parts that do not belong here."""
    return others


def mirrored(images: Images, others: Images, g: Generator) -> Images:
    return images.flip(3 if torch.rand((), generator=g) < 0.7 else 2)


def flat(images: Images, others: Images, g: Generator) -> Images:
    """One colour."""
    colour = torch.rand(len(images), 3, 1, 1, generator=g)
    return colour.to(images.device).expand_as(images)


def noisy(images: Images, others: Images, g: Generator) -> Images:
    """Coarse colour noise, as of a sampling that did not end."""
    coarse = torch.rand(len(images), 3, 16, 16, generator=g).to(images.device)
    return F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=False)


def smeared(images: Images, others: Images, g: Generator) -> Images:
    """Blurred beyond recognition."""
    reach = max(1, round(5 * unit(images)))
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * reach + 1, 1)


CORRUPTIONS: dict[str, Callable[[Images, Images, Generator], Images]] = {
    "shifted": shifted,
    "swapped": swapped,
    "mirrored": mirrored,
    "flat": flat,
    "noisy": noisy,
    "smeared": smeared,
}


def corrupt(images: Images, others: Images, g: Generator) -> tuple[Images, Bool[Tensor, "b h w"]]:
    """One random corruption of all the images, elsewhere in each, and the pixels it changed.

    `others` are images to take foreign parts from. Places are drawn anew until something shows,
    at most `TRIES` times.
    """
    names = list(CORRUPTIONS)
    broken, changed = images.clone(), torch.zeros_like(images[:, 0], dtype=torch.bool)
    for _ in range(TRIES):
        small = changed.flatten(1).sum(dim=1) < LEAST * unit(images) ** 2
        if not small.any():
            break
        kind = names[int(torch.randint(len(names), (), generator=g))]
        mixed = CORRUPTIONS[kind](images, others, g)
        tried = torch.where(patch(images, g), mixed, images)
        broken = torch.where(small[:, None, None, None], tried, broken)
        changed = (broken - images).norm(dim=1) > CHANGED
    return broken, changed
