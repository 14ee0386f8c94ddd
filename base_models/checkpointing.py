"""Less memory for more arithmetic: blocks whose inside is computed again on the way back."""

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)

from core.contracts import DiffusionModel


def recompute_blocks(model: DiffusionModel, network: bool, decoder: bool) -> None:
    """Keep only what enters each block (Chen et al. 2016, arXiv 1604.06174), as diffusers has it.

    `network`: the denoiser's blocks; `decoder`: the autoencoder's, and within them each residual
    block again: at full resolution a block of three is most of what a treatment holds, and a
    decoder costs little beside its denoiser. Gradients stay the same.
    """
    chosen: dict[Any, bool] = {model.network: network, model.vae: decoder}
    for module, wanted in chosen.items():
        if wanted:
            module.enable_gradient_checkpointing()
    if decoder:
        vae: Any = model.vae
        apply_activation_checkpointing(
            vae.decoder, check_fn=lambda one: isinstance(one, ResnetBlock2D)
        )
