"""Planted faults: valid scenes in; broken images with the exact pixels that were broken out."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from core.contracts import Images
from miniature.law import CATEGORIES, SIZE, Scenes, draw
from miniature.paint import coverages, font, pixel_grid, render, spelling, visible


@dataclass(frozen=True)
class Fault:
    """One kind of fault: where it occurs, whether it changes the structure, how it is made."""

    category: str
    structural: bool
    plant: Callable[[Scenes, torch.Generator], Images]
    either: str | None = None
    """The factor whose other values may explain the image with as small an edit."""


def with_factor(scene: Scenes, name: str, values: Tensor) -> Images:
    return render(replace(scene, factors=scene.factors | {name: values}))


def pick(n: int, high: int, g: torch.Generator) -> Tensor:
    return torch.randint(high, (n,), generator=g)


def missing_finger(scene: Scenes, g: torch.Generator) -> Images:
    return with_factor(scene, "missing", pick(len(scene), 4, g))


def extra_finger(scene: Scenes, g: torch.Generator) -> Images:
    return with_factor(scene, "extra", pick(len(scene), 2, g))


def broken_ring(scene: Scenes, g: torch.Generator) -> Images:
    return with_factor(scene, "gap", torch.ones(len(scene), dtype=torch.long))


def misspelt_word(scene: Scenes, g: torch.Generator) -> Images:
    """One letter replaced; words of the lexicon differ in two, so no word stands there."""
    letters, cells = spelling()[scene.factors["word"]].clone(), font().flatten(1)
    for row in letters:
        place = pick(1, 4, g)
        # At least four of fifteen cells differ: O for D is no fault that a person would see.
        unlike = ((cells - cells[row[place]]).abs().sum(dim=1) >= 4).nonzero()[:, 0]
        row[place] = unlike[pick(1, len(unlike), g)]
    return with_factor(scene, "letters", letters)


def unequal_irises(scene: Scenes, g: torch.Generator) -> Images:
    """The right half of the face looks out of an eye of another colour."""
    turn = pick(len(scene), 2, g) + 1
    other = with_factor(scene, "iris", (scene.factors["iris"] + turn) % 3)
    middle = 32 + scene.pose[:, 0][:, None, None]
    right = (pixel_grid(len(scene))[0] > middle)[:, None]
    return torch.where(right, other, render(scene))


def deleted_eye(scene: Scenes, g: torch.Generator) -> Images:
    """Skin where one eye should be."""
    cover = coverages(scene).clone()
    middle = 32 + scene.pose[:, 0][:, None, None]
    left = (pixel_grid(len(scene))[0] < middle)[:, None]
    cover[:, 4:6] = torch.where(left, 0.0, cover[:, 4:6])
    return torch.einsum("blhw,blc->bchw", visible(cover), scene.colours())


def disc(
    where: Float[Tensor, "b h w"], g: torch.Generator, radius: float
) -> Bool[Tensor, "b 1 h w"]:
    """A disc about a random pixel, drawn with odds `where`."""
    centre = torch.multinomial(where.flatten(1).clamp(min=1e-6), 1, generator=g)[:, 0]
    x, y = pixel_grid(len(where))
    cx, cy = (centre % SIZE)[:, None, None], (centre // SIZE)[:, None, None]
    return ((x - cx) ** 2 + (y - cy) ** 2 < radius**2)[:, None]


def blur(scene: Scenes, g: torch.Generator) -> Images:
    """Blurred about a strong edge (hence the fourth power): on flat colour it changes nothing."""
    image = render(scene)
    reach = torch.arange(-9, 10).float()
    kernel = torch.exp(-(reach**2) / (2 * 3.0**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    soft = F.conv2d(F.pad(image, (9, 9, 0, 0), mode="replicate"), kernel, groups=3)
    soft = F.conv2d(F.pad(soft, (0, 0, 9, 9), mode="replicate"), kernel.mT, groups=3)
    return torch.where(disc((soft - image).norm(dim=1) ** 4, g, 13.0), soft, image)


def grey_out(scene: Scenes, g: torch.Generator) -> Images:
    shown = visible(coverages(scene))[:, 2:].sum(dim=1)
    return torch.where(disc(shown, g, 7.0), torch.tensor(0.5), render(scene))


FAULTS = {
    "extra finger": Fault("hand", True, extra_finger),
    "missing finger": Fault("hand", True, missing_finger),
    "broken ring": Fault("bicycle", True, broken_ring),
    "misspelt word": Fault("sign", True, misspelt_word, either="word"),
    "unequal irises": Fault("face", True, unequal_irises, either="iris"),
    "deleted object": Fault("face", True, deleted_eye),
    "blur": Fault("face", False, blur),
    "grey-out": Fault("bicycle", False, grey_out),
}


def plant(name: str, n: int, g: torch.Generator) -> tuple[Scenes, Images, Bool[Tensor, "n h w"]]:
    """n images with one fault each: the scenes they were, the images, the pixels changed."""
    fault = FAULTS[name]
    scene = draw(fault.category, n, g)
    broken = fault.plant(scene, g).clamp(0, 1)
    return scene, broken, differ(broken, render(scene))


def differ(a: Images, b: Images) -> Bool[Tensor, "n h w"]:
    """Pixels that a person sees differ."""
    return (a - b).norm(dim=1) > 0.25


def acceptable(name: str, scene: Scenes, broken: Images) -> Bool[Tensor, "n k h w"]:
    """The masks that may stand for the fault: the pixels planted, then equally small edits.

    Of two unequal eyes either may be the odd one, and a misspelt word may be one letter from two
    words. Where an edit is larger by half, the planted mask stands in its place.
    """
    planted = differ(broken, render(scene))
    masks, factor = [planted], FAULTS[name].either
    if factor is not None:
        for value in range(len(CATEGORIES[scene.category].factors[factor])):
            index = torch.full((len(scene),), value)
            other = differ(broken, with_factor(scene, factor, index).clamp(0, 1))
            small = other.flatten(1).sum(dim=1) <= 1.5 * planted.flatten(1).sum(dim=1)
            masks.append(torch.where(small[:, None, None], other, planted))
    return torch.stack(masks, dim=1)
