"""Less memory for more arithmetic: blocks whose inside is computed again on the way back."""

from typing import Any

from core.contracts import DiffusionModel


def recompute_blocks(model: DiffusionModel, network: bool, decoder: bool) -> None:
    """Keep only what enters each block (Chen et al. 2016, arXiv 1604.06174), as diffusers has it.

    `network`: the denoiser's blocks; `decoder`: the autoencoder's. Gradients stay the same.
    """
    chosen: dict[Any, bool] = {model.network: network, model.vae: decoder}
    for module, wanted in chosen.items():
        if wanted:
            module.enable_gradient_checkpointing()
