"""BayesDiff's artifact map: a sampling written down in, where the network was unsure of it out.

Kou et al. 2024, arXiv 2310.11142, with its skip: only every few steps ask for the uncertainty. The
variance of x is carried through x' = a x + b eps: a^2 Var(x) + 2 a b Cov(x, eps) + b^2 Var(eps),
covariance and variance from samples of x and of the last layer's weights (`detector.last_layer`).
The network is asked again afterwards, for the path of the mean does not depend on the variance.

Legend: b batch, c y x latent channels and cells, h w pixels.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from base_models.trajectory import Level, Trajectory, joined, noise_in
from core.contracts import ArtifactMap, Images, Latents
from core.seeds import generator
from detector.last_layer import Laplace
from detector.score_dynamics import MAD_TO_DEVIATION, median

SAMPLES, EVERY, DEVIATIONS = 10, 5, 3.0
"""The paper's samples and skip; what is unsure is nowhere said."""
SAMPLE = 100
"""Numbers of the draws of one step, from here on."""
WEIGHTS = 72
"""What a draw is for; see `core.seeds`."""


class Again(NamedTuple):
    """The network that drew a trajectory, to be asked again."""

    clean: Callable[[Latents, int], Latents]
    """x0-hat of latents that enter step i."""
    noise: Callable[[int, int], Latents]
    """Unit noise of each image's seed, of step i; one for each number."""
    decode: Callable[[Latents], Images]


@final
class Uncertainty:
    """A detector that holds the trajectory of the very images it is shown; not differentiable.

    In its map 0.5 is where the variance is `deviations` (1.4826 MAD) over the image's median.
    """

    differentiable = False

    def __init__(
        self,
        trajectory: Trajectory,
        again: Again,
        laplace: Laplace,
        samples: int = SAMPLES,
        every: int = EVERY,
        deviations: float = DEVIATIONS,
    ) -> None:
        self.trajectory, self.again, self.laplace = trajectory, again, laplace
        self.samples, self.every, self.deviations = samples, every, deviations

    @torch.no_grad()
    def __call__(self, images: Images) -> ArtifactMap:
        """Of latents the variance of `samples` decoded ones, as the paper has it."""
        variance = self.variance()
        if len(variance) != len(images):
            raise ValueError(f"{len(images)} images, but a trajectory of {len(variance)}")
        if variance.shape != images.shape:
            drawn = [self.again.decode(latents) for latents in self._around(variance)]
            variance = torch.stack(drawn).var(dim=0)
        return graded(variance, self.deviations).to(images.device)

    @torch.no_grad()
    def maps(self) -> ArtifactMap:
        """At the latents' size, of what leaves the last step that was taken."""
        return graded(self.variance(), self.deviations)

    def variance(self) -> Latents:
        """Var of what leaves the last step that was taken."""
        carried = None
        for i in range(len(self.trajectory.clean)):
            if self.trajectory.levels[i].signal:  # a flow's first step knows nothing of x0 yet
                carried = self.after(i, carried)
        return torch.zeros_like(self.trajectory.clean[-1]) if carried is None else carried

    def after(self, i: int, variance: Latents | None) -> Latents:
        """Var of what leaves step i, from that of what enters it (None: pure noise)."""
        level, following = self.trajectory.levels[i : i + 2]
        a, b = coefficients(level, following)
        if variance is not None and i % self.every:
            return a * a * variance
        if variance is None:
            variance = torch.zeros_like(self.trajectory.entering[i])
        together, own = self._sampled(i, variance)
        return (a * a * variance + 2 * a * b * together + b * b * own).clamp(min=0)

    def _sampled(self, i: int, variance: Latents) -> tuple[Latents, Latents]:
        """Cov(x, eps) and Var(eps)."""
        entering, level = self.trajectory.entering[i], self.trajectory.levels[i]
        xs, noises = [], []
        for s in range(self.samples):
            x = entering + variance.sqrt() * self.again.noise(i, SAMPLE + s)
            with self.laplace.sampled(generator(WEIGHTS, i, s)):
                clean = self.again.clean(x, i)
            xs.append(x)
            noises.append(noise_in(x, clean, level))
        # From the first sample: equal samples then have no variance at all, not that of rounding.
        x, eps = torch.stack(xs) - xs[0], torch.stack(noises) - noises[0]
        together = ((x - x.mean(dim=0)) * (eps - eps.mean(dim=0))).mean(dim=0)
        return together, eps.var(dim=0, unbiased=True)

    def _around(self, variance: Latents) -> list[Latents]:
        """Latents drawn around those that leave the last step."""
        i = len(self.trajectory.clean)
        entering, clean = self.trajectory.entering[-1], self.trajectory.clean[-1]
        eps = noise_in(entering, clean, self.trajectory.levels[i - 1])
        mean, deviation = joined(clean, eps, self.trajectory.levels[i]), variance.sqrt()
        numbers = range(SAMPLE, SAMPLE + self.samples)
        return [mean + deviation * self.again.noise(i, number) for number in numbers]


def coefficients(level: Level, following: Level) -> tuple[float, float]:
    """a and b of x' = a x + b eps, x0-hat = (x - noise eps) / signal put in."""
    a = following.signal / level.signal
    return a, following.noise - level.noise * a


def graded(variance: Float[Tensor, "b c h w"], deviations: float) -> ArtifactMap:
    """The channels' mean r / (1 + r), r the variance over the image's own limit."""
    seen = variance.mean(dim=1, keepdim=True)
    flat = seen.flatten(1)[None]
    middle = median(flat)
    limit = middle + deviations * MAD_TO_DEVIATION * median((flat - middle).abs())
    ratio = seen / limit.view(-1, 1, 1, 1).clamp(min=1e-12)
    return ratio / (1 + ratio)
