"""ASCED's artifact map: a sampling written down in, where its score changed abnormally out.

Cao et al., CVPR 2025, arXiv 2503.16218. Artifacts arise where the score changes out of step with
the rest of the image, in the middle of the sampling (`Window`). Three variants:

paper   |Delta(w s)| to the letter. With r = noise / signal, w s = -r eps, so from one step to the
        next even an eps that stays the same changes it, by (r - r') eps: where the steps are large,
        the map shows the noise that the image began with, more than the image
x0      |Delta x0-hat|, which the paper means it to follow; its threshold
code    what its release does: differences of 8-bit pictures of x0-hat; its own threshold

Nothing is trained, and no image is looked at but through the model that drew it.

Legend: b batch, c y x latent channels and cells, h w pixels, s steps written down, d differences
between neighbouring ones, T sampling steps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from base_models.trajectory import Trajectory, weighted_scores
from core.contracts import ArtifactMap, Images, Latents
from core.errors import UserError
from detector.names import DynamicsVariant as Variant
from detector.regions import dilated, of_size, of_width

T_C = 0.48
"""T_c / T, the latest time that leaves enough steps to mend: 12 of DDIM's 25 (paper)."""
MAD_TO_DEVIATION = 1.4826
SIDE = 256
"""The release's sizes are in pixels of this square; here they go with the image."""
AREA, WIDTH, GROWTH, SIGMA = (100, 10_000), 2, 5, 2.0
"""Pixels of a region; half the side of the square it must hold; its growth; the blur."""


class Window(NamedTuple):
    """Shares of T, counted as time is: from 1 at pure noise down to 0. T_c < t <= T_d is read."""

    t_c: float = T_C
    t_d: float = 1.0

    def correction(self, steps: int) -> int:
        """The step (from 0) that starts at T_c: the first that is not read."""
        return steps - round(self.t_c * steps)

    def read(self, steps: int) -> range:
        """The steps whose difference to the step before is read."""
        return range(steps - round(self.t_d * steps) + 1, self.correction(steps))


def check_window(window: Window, steps: int) -> None:
    """Raise `UserError` unless a difference between two steps lies in the window."""
    if not 0 <= window.t_c < window.t_d <= 1:
        raise UserError(f"0 <= T_c < T_d <= 1 must hold, not {window.t_c} and {window.t_d}.")
    if len(window.read(steps)) < 1 or steps < 8:
        raise UserError(
            f"score dynamics need about 20 sampling steps, and {steps} leave too few between "
            f"T_d = {window.t_d} T and T_c = {window.t_c} T: give more steps, or another detector."
        )


@final
class ScoreDynamics:
    """A detector that holds the trajectory of the very images it is shown; not differentiable.

    In its map 0.5 is where the variant's own threshold lies. `bank`: what a sound difference is
    (`mean_dynamics` of many samplings), a figure for each of the T - 1 differences; without one,
    each image's own mean. `decode` gives `code` its pictures, of latents through the decoder.
    """

    differentiable = False

    def __init__(
        self,
        trajectory: Trajectory,
        decode: Callable[[Latents], Images],
        variant: Variant = "paper",
        window: Window = Window(),  # noqa: B008
        bank: Sequence[float] | None = None,
        factor: float = 1.0,
    ) -> None:
        check_window(window, trajectory.steps)
        if bank is not None and len(bank) != trajectory.steps - 1:
            raise UserError(
                f"the score bank is of {len(bank) + 1} sampling steps, not of {trajectory.steps}: "
                "calibrate again with as many steps."
            )
        self.variant: Variant = variant
        self.trajectory, self.decode = trajectory, decode
        self.window, self.bank, self.factor = window, bank, factor

    def __call__(self, images: Images) -> ArtifactMap:
        found = self.maps()
        if len(found) != len(images):
            raise ValueError(f"{len(images)} images, but a trajectory of {len(found)}")
        if found.shape[-2:] == images.shape[-2:]:
            return found.to(images.device)
        sides = images.shape[-2:]
        return F.interpolate(found, size=sides, mode="bilinear").to(images.device)

    def maps(self) -> ArtifactMap:
        """At the resolution that the variant reads: latent cells, or pixels (`code`)."""
        known = range(self.window.read(self.trajectory.steps)[0] - 1, self._last + 1)
        if self.variant == "code":
            return code_map(torch.stack([self.decode(self.trajectory.clean[i]) for i in known]))
        changes = dynamics(self.trajectory, self.variant)[known[0] : known[-1]]
        if self.bank is None:
            return paper_map(changes, changes.mean(dim=(2, 3)), self.factor)
        chosen = torch.tensor(self.bank[known[0] : known[-1]]).to(changes)
        return paper_map(changes, chosen[:, None], self.factor)

    @property
    def _last(self) -> int:
        """The last step in the window, or the last that was taken."""
        last = self.window.read(self.trajectory.steps)[-1]
        return min(last, len(self.trajectory.clean) - 1)


def dynamics(trajectory: Trajectory, variant: Variant = "paper") -> Float[Tensor, "d b y x"]:
    """|Delta(w s)| of neighbouring steps, else |Delta x0-hat|: root mean square over the channels.

    Zero where the first of the two has no weighted score (pure noise, of flow matching).
    """
    read = weighted_scores(trajectory) if variant == "paper" else torch.stack(trajectory.clean)
    changes = read.diff(dim=0)
    return changes.square().mean(dim=2).sqrt().nan_to_num(nan=0.0)


def mean_dynamics(changes: Float[Tensor, "d b y x"]) -> list[float]:
    """The score bank's mean, a figure for each pair of steps."""
    return changes.mean(dim=(1, 2, 3)).tolist()


def paper_map(
    changes: Float[Tensor, "d b y x"], bank: Float[Tensor, "d _"], factor: float = 1.0
) -> ArtifactMap:
    """Omega = {change > tau} of any step, tau = factor max(MAD, bank), softened.

    MAD: the median absolute deviation of one image's changes at one step. The map is r / (1 + r)
    of the largest r = change / tau. The paper's factor is 1.
    """
    flat = changes.flatten(2)
    deviation = (flat - median(flat)).abs()
    tau = factor * torch.maximum(median(deviation), bank[..., None])
    ratio = (flat / tau.clamp(min=1e-12)).amax(dim=0).view(changes.shape[1:])
    return (ratio / (1 + ratio))[:, None]


def code_map(frames: Float[Tensor, "s b 3 h w"]) -> ArtifactMap:
    """The release's mask is where this is at least 0.5.

    Frames as 8-bit levels (cut, not rounded); their absolute differences, blurred along rows,
    columns and colours; threshold median + 3 * 1.4826 * MAD of an image's difference; the largest
    colour; the union over steps; regions of 100 to 10,000 pixels (of 256 x 256) that hold a square
    of 5 pixels a side. Within the mask r / (1 + r) of the largest r = difference / threshold, and
    at least 0.5; outside less.
    """
    scale = (frames.shape[-1] * frames.shape[-2]) ** 0.5 / SIDE
    levels = (frames.clamp(0, 1) * 255).floor()
    changes = levels.diff(dim=0).abs()
    for dim, sigma in ((2, SIGMA), (3, SIGMA * scale), (4, SIGMA * scale)):
        changes = blurred(changes, dim, sigma)
    flat = changes.flatten(2)
    middle = median(flat)
    limit = middle + 3 * MAD_TO_DEVIATION * median((flat - middle).abs())
    highest, limit = changes.amax(dim=2), limit[..., None]
    masks = (highest > limit).any(dim=0)
    masks = of_width(of_size(masks, AREA[0] * scale**2, AREA[1] * scale**2), round(WIDTH * scale))
    ratio = (highest / limit.clamp(min=1e-6)).amax(dim=0)
    soft = ratio / (1 + ratio)
    return torch.where(masks, soft.clamp(min=0.5), soft.clamp(max=0.49))[:, None]


def grown(maps: ArtifactMap, threshold: float = 0.5) -> ArtifactMap:
    """The mask that `code` corrects: 1 or 0, wider by 5 pixels (of 256 x 256)."""
    h, w = maps.shape[-2:]
    radius = round(GROWTH * (h * w) ** 0.5 / SIDE)
    return dilated(maps[:, 0] >= threshold, radius)[:, None].float()


def median(values: Float[Tensor, "d b n"]) -> Float[Tensor, "d b 1"]:
    """The mean of the two in the middle, as numpy's."""
    low = values.sort(dim=-1).values
    n = values.shape[-1]
    return (low[..., (n - 1) // 2] + low[..., n // 2])[..., None] / 2


def blurred(values: Tensor, dim: int, sigma: float) -> Tensor:
    """A Gaussian along one dimension, cut at 4 sigma, borders mirrored (as scipy's `reflect`)."""
    n, radius = values.shape[dim], int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=values.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    places = (torch.arange(n, device=values.device)[:, None] + offsets) % (2 * n)
    places = torch.where(places >= n, 2 * n - 1 - places, places)
    mixing = torch.zeros(n, n, device=values.device)
    mixing.scatter_add_(1, places, (weights / weights.sum()).expand(n, -1))
    return (values.movedim(dim, -1) @ mixing.T).movedim(-1, dim)
