"""The architectures that the miniature's bases are built in: one file a family, one signature.

Legend: b batch, p prompts of the world.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.contracts import Latents
from miniature.flux import Flux
from miniature.kolors import Kolors
from miniature.sdxl import Sdxl
from miniature.unconditional import Unconditional


class Family(Protocol):
    """What `miniature.build` needs to know of an architecture."""

    @property
    def pipeline(self) -> str:
        """diffusers' class."""
        ...

    @property
    def network_folder(self) -> str:
        """The network's folder in a pipeline."""
        ...

    @property
    def guided(self) -> bool:
        """Sampled with classifier-free guidance: captions are dropped while it learns."""
        ...

    @property
    def pixels(self) -> bool:
        """It learns pixels, without an autoencoder."""
        ...

    @property
    def shifted(self) -> bool:
        """Latents are shifted before they are scaled, as its pipeline does."""
        ...

    def make_readers(self) -> dict[str, nn.Module]:
        """The text encoders with random weights, by their folders in the pipeline."""
        ...

    def make_tokenizers(self) -> dict[str, Any]:
        """Their tokenizers, by the same folders."""
        ...

    def teach(
        self,
        readers: dict[str, nn.Module],
        steps: Iterable[int],
        seed: int,
        held: Collection[str] = (),
    ) -> float:
        """Train them in so many steps to read every prompt; the share of right answers at the end.

        `held`: prompts of which they know enough; what they say of these is to change little.
        """
        ...

    def conditioning(self, readers: dict[str, nn.Module]) -> dict[str, Float[Tensor, "rows ..."]]:
        """What they say of every prompt, in the order of `all_prompts`; if `guided`, then of the
        empty one."""
        ...

    def make_network(self) -> nn.Module:
        """The denoiser with random weights."""
        ...

    def loss(
        self, network: nn.Module, latents: Latents, said: dict[str, Tensor], g: torch.Generator
    ) -> Float[Tensor, ""]:
        """Mean squared error of the prediction target at random times.

        On the latents' device; g may be elsewhere.
        """
        ...

    def save(
        self, folder: Path, network: nn.Module, vae: Any, readers: dict[str, nn.Module]
    ) -> None:
        """Write a pipeline folder; `vae` is an `AutoencoderKL`, or None for pixels."""
        ...


FAMILIES: dict[str, Family] = {
    "flux": Flux(),
    "sdxl": Sdxl(),
    "kolors": Kolors(),
    "ddpm": Unconditional(pixels=True),
    "ldm": Unconditional(pixels=False),
}
