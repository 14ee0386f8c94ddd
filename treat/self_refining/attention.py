"""The reverse process: louder keys and values where the mean flaw map is high.

K and V of every self-attention times 1 + lambda M_emb, queries untouched (arXiv 2512.08774). M_emb
is the map resized to the layer's tokens, or what a small convolution makes of it, which learns
along; tokens that are no place of the image (text) have 0. Where keys are normed (FLUX, SD 3.5) the
norm is what is made louder, for it would take any factor before it away. The layers are wrapped,
not patched: whatever processor computes the attention calls them, and taken off again nothing of it
is left.

Legend: h w pixels of the map, y x and n the tokens of a layer.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention
from jaxtyping import Float
from torch import Tensor, nn

from core.errors import UserError
from treat.self_refining.noise import fitted
from treat.self_refining.settings import Embedding

WIDTH = 8
"""Channels of the learned embedding: 1 -> 8 -> 8 -> 1."""
NAMES = ("to_k", "to_v")


class Flaws(nn.Module):
    """The map that all layers read; without one they are what they were."""

    def __init__(self, kind: Embedding, finest: tuple[int, int], seed: int = 0):
        super().__init__()
        self.finest = finest
        """Tokens down and across of the finest layer that there may be."""
        self.map: Float[Tensor, "1 1 h w"] | None = None
        self.embedding: nn.Module = nn.Identity()
        if kind == "learned":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.embedding = nn.Sequential(
                    nn.Conv2d(1, WIDTH, 3, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(WIDTH, 1, 3, padding=1),
                )

    def tokens(self, n: int) -> Float[Tensor, "1 n 1"] | None:
        """M_emb of a layer of n tokens, those of the image last; None without a map."""
        if self.map is None:
            return None
        y, x = grid(n, *self.finest)
        seen = fitted(self.embedding(self.map), y, x).flatten(2).transpose(1, 2)
        return nn.functional.pad(seen, (0, 0, n - y * x, 0))


def grid(n: int, y: int, x: int) -> tuple[int, int]:
    """y x, if n has room for it and for text; else halved until there are n places, as in UNets.

    Convolutions halve an odd side upwards, pooling and convolutions padded on one side alone
    downwards. Raises `UserError` where neither comes to n: the map would lie beside the image.
    """
    if y * x <= n:
        return y, x
    for odd in (1, 0):
        height, width = y, x
        while height * width > n:
            height, width = (max(1, (side + odd) // 2) for side in (height, width))
        if height * width == n:
            return height, width
    raise UserError(
        f"an attention of this base has {n} tokens, which no halving of {y}x{x} has: choose sides "
        "that it can halve, or set reverse_weight to 0."
    )


class Louder(nn.Module):
    """A layer that makes keys or values, and what it makes louder where the map is high."""

    def __init__(self, layer: nn.Module, flaws: Flaws, weight: float, axis: int):
        super().__init__()
        self.layer, self.weight = layer, weight
        self.axis = axis
        """Of what the layer makes, that of the tokens."""
        self._flaws = (flaws,)  # in a tuple: one map serves all layers, and is no part of any

    def forward(self, tokens: Tensor, *rest: Any, **more: Any) -> Tensor:
        made = self.layer(tokens, *rest, **more)
        louder = self._flaws[0].tokens(made.shape[self.axis])
        if louder is None:
            return made
        after = [1] * (made.ndim - 1 - self.axis)
        factor = 1 + self.weight * louder.to(made.device).view(-1, *after)
        return (made * factor).to(made.dtype)  # 1 + lambda M itself is too fine for bf16


def wrap(network: nn.Module, flaws: Flaws, weight: float) -> int:
    """Make keys and values of every self-attention `Louder`; the number of attentions.

    Raises `UserError` for a network without one.
    """
    found = list(attentions(network))
    for attention in found:
        for name, axis in last(attention).items():
            setattr(attention, name, Louder(getattr(attention, name), flaws, weight, axis))
    if not found:
        raise UserError("this base has no self-attention: set reverse_weight to 0.")
    return len(found)


def unwrap(network: nn.Module) -> None:
    """The network as it was built, with the weights that it has now."""
    for attention in list(attentions(network)):
        for name in last(attention):
            layer = getattr(attention, name)
            if isinstance(layer, Louder):
                setattr(attention, name, layer.layer)


def last(attention: Any) -> dict[str, int]:
    """The layers that keys and values leave last, and the axis of the tokens then."""
    if getattr(attention, "norm_k", None) is None:
        return dict.fromkeys(NAMES, 1)
    return {"norm_k": 1 if isinstance(attention, FluxAttention) else 2, "to_v": 1}


def attentions(network: nn.Module) -> Iterator[Any]:
    """Modules with keys and values of image tokens; of a cross-attention they are the text's."""
    for module in network.modules():
        own = all(isinstance(getattr(module, name, None), nn.Module) for name in NAMES)
        if own and not getattr(module, "is_cross_attention", False):
            yield module
