"""Watched images and the base's of the same prompts and seeds in; which meters collapse, out.

A treated model may please its detector and still lose what made its images good. Each meter gives
one number an image. How far its mean has moved from the base's is told in units of the base's own
spread from image to image, less two standard errors of the paired difference, so that neither a
sensitive meter nor few images raise an alarm by themselves. Likeness and variety, which are told
against other images, have scales of their own: half and a quarter of their mean at the base. So
have the two meters that are no mean over images: `blindness` and `Pace`.
Legend: b images, h w pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from core.contracts import Images

PREFIX = "change_"
SECOND, FIT = "second", "image_reward"
SELECTED, SECOND_SELECTED = "selected", "second_selected"
"""Share of an image's pixels that the pixel loss selects; and that it would by the second map."""
BLIND, PACE = "blind", "pace"
WRONG_WAY = {
    "sharpness": (-1, 1),
    "high_frequency": (-1, 1),
    "saturation": (-1, 1),
    "contrast": (-1, 1),
    "variety": (-1,),
    "likeness": (-1,),
    SECOND: (1,),
    FIT: (-1,),
    SELECTED: (1,),
    BLIND: (1,),
    PACE: (1,),
}
"""Where each meter must not go: blur and noise, grey and garish; alike, astray; worse, unfit; more
to mend than before, less of it seen than there is; the adapters running away."""
THUMBNAIL = 8
"""Pixels a side of what is compared between images: composition and colour, no detail."""
FEWEST = 16
"""Of fewer images neither a spread nor an error can be told: healthy runs were stopped."""
NARROWEST = 0.005
"""No spread counts as less, be the base's images ever so alike (all meters lie about in 0 to 1)."""
FEWEST_SELECTED = 8
"""Images of the base in which a map must select something, that its fall may be told."""
BLIND_SCALE, PACE_SCALE = 0.75, 0.25
"""With the default tolerance an alarm begins at .45 of what was selected, and at 1.15 times the
first pace. What healthy and ruined runs reached: docs/numbers.md."""
EPS = 1e-8
PerImage = Float[Tensor, " b"]


def changes(
    images: Images, base: Images, seen: Mapping[str, tuple[PerImage, PerImage]]
) -> dict[str, float]:
    """By how many of the base's spreads each meter has surely moved: 0 where it may not have.

    `seen`, by the name of a meter, is what detectors or an image reward said of the images and of
    the base's. Fewer than `FEWEST` images say nothing.
    """
    if len(images) < FEWEST:
        return {}
    now, before = meters(images, base), meters(base, base)
    seen = dict(seen)
    second, blind = seen.pop(SECOND_SELECTED, None), {}
    if second is not None and SELECTED in seen:
        blind = {PREFIX + BLIND: blindness(seen[SELECTED], second)}
    for name, (found, known) in seen.items():
        now[name], before[name] = found, known
    spreads = {name: values.std() for name, values in before.items()}
    # Half of the way from itself to just any image of the base; a quarter of the way to one image.
    spreads["likeness"] = before["likeness"].mean() / 2
    spreads["variety"] = before["variety"].mean() / 4
    return {
        PREFIX + name: sure_change(now[name] - before[name], spread)
        for name, spread in spreads.items()
    } | blind


def blindness(first: tuple[PerImage, PerImage], second: tuple[PerImage, PerImage]) -> float:
    """What the second map still selects of what it selected at the base, less what the first does.

    Of each, the shares of the images now and of the base's. Healing lowers both alike: in a healthy
    run this is about 0, and it is 1 where the first selects nothing any more and the second as much
    as ever. Surely so, over `BLIND_SCALE`; 0 where either selected something in too few images.
    """
    if min(int((base > 0).sum()) for _, base in (first, second)) < FEWEST_SELECTED:
        return 0.0
    (kept, off), (still, its_off) = (left_over(*shares) for shares in (first, second))
    error = (its_off - off).std() / len(off) ** 0.5  # of a difference of two ratios, paired
    return float((still - kept - 2 * error).clamp_min(0) / BLIND_SCALE)


def left_over(now: PerImage, base: PerImage) -> tuple[Float[Tensor, ""], PerImage]:
    """The ratio of the sums, and by how much of the base's mean each image differs from it."""
    ratio = now.mean() / base.mean()
    return ratio, (now - ratio * base) / base.mean()


def sure_change(moved: PerImage, spread: Float[Tensor, ""]) -> float:
    """The mean less two standard errors, never past zero, over the spread."""
    mean, error = moved.mean(), moved.std() / len(moved) ** 0.5
    moved_surely = mean.sign() * (mean.abs() - 2 * error).clamp_min(0)
    return float(moved_surely / spread.clamp_min(NARROWEST))


def meters(images: Images, base: Images) -> dict[str, PerImage]:
    """One number an image."""
    luma = images.mean(dim=1)
    return {
        "sharpness": sharpness(images),
        "high_frequency": high_frequency(luma),
        "saturation": (images.amax(1) - images.amin(1)).mean((1, 2)),
        "contrast": luma.std((1, 2)),
        "variety": variety(images),
        "likeness": likeness(images, base),
    }


def sharpness(images: Images) -> PerImage:
    """Mean absolute Laplacian of the gray image."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(images.mean(1, keepdim=True), kernel).abs().mean((1, 2, 3))


def high_frequency(luma: Float[Tensor, "b h w"]) -> PerImage:
    """Share of the power, the mean gray left out, above half of the highest frequency."""
    power = torch.fft.rfft2(luma).abs().square()
    power[:, 0, 0] = 0
    down, across = torch.fft.fftfreq(luma.shape[1]), torch.fft.rfftfreq(luma.shape[2])
    high = (down[:, None].square() + across[None].square()).sqrt() > 0.25
    return (power * high).sum((1, 2)) / (power.sum((1, 2)) + EPS)


def thumbnails(images: Images) -> Float[Tensor, "b values"]:
    return F.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)


def variety(images: Images) -> PerImage:
    """Mean distance to the other images, at thumbnail size."""
    small = thumbnails(images)
    return torch.cdist(small, small).sum(1) / (len(images) - 1)


def likeness(images: Images, base: Images) -> PerImage:
    """Correlation with the base's image of the same prompt and seed, less that with its others.

    It falls where the prompt is no longer heard, and where all images become one.
    """
    both = (
        F.normalize(thumbnails(images) - thumbnails(base).mean(0), dim=1)
        @ F.normalize(thumbnails(base) - thumbnails(base).mean(0), dim=1).T
    )
    own = both.diagonal()
    return own - (both.sum(1) - own) / (len(base) - 1)


@dataclass
class Pace:
    """How fast the adapters carry the weights away, over how fast they did up to the first look.

    AdamW moves a weight by about the learning rate an update, however large the gradient. So what
    they add grows fastest at the beginning, while all updates pull one way; later updates go less
    straight, and the growth for the same rates becomes less. More is what factors do that run away
    together, A and B.
    """

    first: float | None = None
    moved: float = 0.0
    """Norm of what the adapters add to the weights, at the last look."""
    spent: float = 0.0
    """Sum of the learning rates up to it."""

    def change(self, moved: float, spent: float) -> float | None:
        """By how much the growth since the last look exceeds the first one's; None if none can be.

        In parts of the first one's, over `PACE_SCALE`.
        """
        if spent <= self.spent:  # nothing was learnt: the look before the first update
            return None
        pace = (moved - self.moved) / (spent - self.spent)
        self.moved, self.spent = moved, spent
        self.first = self.first or pace
        return (pace / self.first - 1) / PACE_SCALE if self.first else None


@dataclass
class Guard:
    """Raises an alarm for a meter that has gone too far in two looks one after the other."""

    tolerance: float = 0.6
    """In the base's spreads from image to image."""
    before: Sequence[str] = ()
    """What had gone too far in the last look."""
    pace: Pace = field(default_factory=Pace)

    def look(self, figures: Mapping[str, float]) -> list[str]:
        """The meters that raise an alarm now."""
        far = [name for name, ways in WRONG_WAY.items() if self._too_far(figures, name, ways)]
        alarms = [name for name in far if name in self.before]
        self.before = far
        return alarms

    def _too_far(self, figures: Mapping[str, float], name: str, ways: tuple[int, ...]) -> bool:
        change = figures.get(PREFIX + name)
        if change is None:
            return False
        return not all(change * way <= self.tolerance for way in ways)  # nan is too far as well
