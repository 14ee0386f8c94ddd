"""The miniature's families of base models: a name in, what `miniature.build` trains and saves out.

A new family is one file and one line here.
"""

from pathlib import Path
from typing import Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from miniature.kolors import Kolors
from miniature.sdxl import Sdxl


class Family(Protocol):
    """Readers and a network of one architecture, and how the network is trained and kept."""

    name: str
    centred: bool
    """Latents given to `loss` are (z - shift) * scale, else z * scale."""

    def make_readers(self) -> dict[str, nn.Module]:
        """Text encoders by their names in the pipeline, random from torch's global generator."""
        ...

    def teach(self, readers: dict[str, nn.Module], steps: int, seed: int) -> float:
        """Train the readers to read, on the CPU; return the share of right answers."""
        ...

    def conditioning(self, readers: dict[str, nn.Module]) -> dict[str, Tensor]:
        """A row for each of `all_prompts()`, and a last one for the empty prompt."""
        ...

    def make_network(self) -> nn.Module: ...

    def loss(
        self, network: nn.Module, latents: Tensor, said: dict[str, Tensor], g: torch.Generator
    ) -> Tensor:
        """Of a batch of latents and their rows of `conditioning`, on any device; g on the CPU."""
        ...

    def save(
        self, folder: Path, network: nn.Module, vae: AutoencoderKL, readers: dict[str, nn.Module]
    ) -> None:
        """Write a pipeline folder that diffusers opens, all from CPU modules."""
        ...


FAMILIES: dict[str, Family] = {"sdxl": Sdxl(), "kolors": Kolors()}
