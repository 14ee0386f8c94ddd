"""The contract in the middle: images in, artifact maps out, and the models on either side.

Legend: b batch, h w pixels, c y x latent channels and cells, T sampling steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "b 3 h w"]
"""float32 RGB in [0, 1]."""
ArtifactMap = Float[Tensor, "b 1 h w"]
"""float32, 0 sound .. 1 surely artifact."""
Latents = Float[Tensor, "b c y x"]
"""float32, shifted and scaled as the network sees them, never packed into tokens.

Between steps they also carry the scale of their sampler's noise (Euler's x0 + sigma eps).
"""
Conditioning = Mapping[str, Tensor]
"""What the text encoders said, batch first in every tensor; may be cached on disk."""


@runtime_checkable
class Detector(Protocol):
    """Anything that looks at images and says, pixel by pixel, how surely they are artifacts."""

    differentiable: bool

    def __call__(self, images: Images) -> ArtifactMap: ...


@dataclass(frozen=True)
class Schedule:
    """The noise levels of one sampling: `sigmas` (T + 1), `timesteps` (T).

    sigma by each family's law: FLUX the share of noise, UNets noise over signal. The last is 0,
    or what the base's sampler leaves.
    """

    sigmas: Float[Tensor, " T_plus_1"]
    timesteps: Float[Tensor, " T"]
    height: int
    width: int

    @property
    def steps(self) -> int:
        return len(self.timesteps)


@runtime_checkable
class DiffusionModel(Protocol):
    """A base model as every treatment sees it; one file per family in `base_models/`."""

    family: str
    network: torch.nn.Module
    """The denoiser that adapters are put on (transformer or UNet)."""
    vae: torch.nn.Module
    """The autoencoder."""

    def to(self, device: torch.device | str) -> "DiffusionModel":
        """Move every network that is still there."""
        ...

    def encoders_to(self, device: torch.device | str) -> None:
        """Move text encoders and autoencoder: to encode, the network need not be there yet."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning: ...

    def drop_text_encoders(self) -> None:
        """Free them once every prompt is encoded."""
        ...

    def schedule(self, steps: int, height: int, width: int) -> Schedule:
        """Raise `UserError` where height or width does not divide."""
        ...

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Latents:
        """One image's noise is a pure function of its seed, whatever the batch."""
        ...

    def step(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> Latents:
        """Deterministic sampler step i of T; latents stay float32."""
        ...

    def clean_estimate(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> Latents:
        """x0-hat at step i."""
        ...

    def move(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> tuple[Latents, Latents]:
        """The latents after step i, and x0-hat before it, from one pass through the network."""
        ...

    def noised(self, clean: Latents, i: int, schedule: Schedule, noise: Latents) -> Latents:
        """`clean` under unit `noise` at the level of step i, as `clean_estimate` takes it.

        Linear in both; i = T is what the sampler's last step leaves.
        """
        ...

    def decode(self, latents: Latents) -> Images:
        """Unclamped: values may leave [0, 1] a little."""
        ...

    def encode(self, images: Images) -> Latents:
        """The mode of the encoder's posterior, shifted and scaled."""
        ...

    def offline_loss(
        self, clean: Latents, conditioning: Conditioning, seeds: Sequence[int]
    ) -> Float[Tensor, ""]:
        """Mean squared error of the model's own prediction target at seeded noise and times."""
        ...

    def lora_targets(self, preset: str) -> list[str]:
        """Module-name endings for peft, by preset name (`attention`, `attention+mlp`)."""
        ...
