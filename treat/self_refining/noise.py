"""The forward process: more noise where the mean flaw map is high.

The paper adds the map to the noise, in what the network sees and in what it should predict:
eps + lambda M (arXiv 2512.08774). Its two releases do otherwise, and are here by name: `input`
multiplies what the network sees by 1 + lambda M and asks for the plain noise; `target` asks for
eps + lambda M of what it does not see. `centred` is ours: the paper's with M less its mean over the
places, for plain sampling begins with noise that has none (docs/sister_methods.md).

Legend: b batch, h w pixels, c y x channels and cells of what is noised.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from core.contracts import Latents
from treat.self_refining.settings import Variant


def amplified(
    noise: Latents, flaws: Float[Tensor, "1 1 h w"], weight: float, variant: Variant
) -> tuple[Latents, Latents]:
    """What stands for the noise in x_t, and in the target."""
    where = weight * fitted(flaws, noise.shape[-2], noise.shape[-1]).to(noise)
    if variant == "input":
        return noise * (1 + where), noise
    if variant == "centred":
        where = where - where.mean(dim=(-2, -1), keepdim=True)
    more = noise + where
    return (noise if variant == "target" else more), more


def fitted(flaws: Float[Tensor, "1 1 h w"], y: int, x: int) -> Float[Tensor, "1 1 y x"]:
    """The map on another grid; bilinear."""
    if tuple(flaws.shape[-2:]) == (y, x):
        return flaws
    return F.interpolate(flaws, size=(y, x), mode="bilinear", antialias=True)
