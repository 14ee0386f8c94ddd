"""Less memory for more arithmetic: blocks whose inside is computed again on the way back."""

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    ActivationWrapper,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

from core.contracts import DiffusionModel


def recompute_blocks(model: DiffusionModel, network: bool, decoder: bool) -> None:
    """Keep only what enters each block (Chen et al. 2016, arXiv 1604.06174), as diffusers has it.

    `network`: the denoiser's blocks; `decoder`: the autoencoder's, within them each residual block
    again, and of that each half: at full resolution a block is most of what a treatment holds, and
    a decoder costs little beside its denoiser. Gradients stay the same.
    """
    chosen: dict[Any, bool] = {model.network: network, model.vae: decoder}
    for module, wanted in chosen.items():
        if wanted:
            module.enable_gradient_checkpointing()
    if decoder:
        vae: Any = model.vae
        apply_activation_checkpointing(
            vae.decoder, _wrapped, check_fn=lambda one: isinstance(one, ResnetBlock2D)
        )


class Halves(ActivationWrapper):
    """A residual block of a decoder; each half (norm, activation, convolution) by itself."""

    def forward(self, hidden: Tensor, temb: None = None) -> Tensor:
        block: Any = self._checkpoint_wrapped_module
        # First, so that its gradient is computed last and not held beside those of the halves.
        past = hidden if block.conv_shortcut is None else block.conv_shortcut(hidden)
        inside = hidden
        for norm, conv in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
            half = nn.Sequential(norm, block.nonlinearity, conv)
            inside = checkpoint(half, inside, use_reentrant=False)
        return (past + inside) / block.output_scale_factor


def _wrapped(block: ResnetBlock2D) -> nn.Module:
    """In halves, unless it does what no decoder of an `AutoencoderKL` does between them."""
    further = (block.time_emb_proj, block.upsample, block.downsample)
    plain = all(part is None for part in further) and not block.dropout.p
    return checkpoint_wrapper(Halves(block) if plain else block)
