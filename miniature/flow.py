"""The miniature's base model: cached latents of law renders in, a `FluxTransformer2DModel` out.

Three grades are three moments of one training, as generators of one line grow better: the oldest
has also seen many images under an opaque stamp that the law does not know, the newest few.
Legend: b batch, c y x latent channels and cells, n prompts.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from base_models.flux import pack, token_places
from core.contracts import Images, Latents
from core.muon import Muon
from core.seeds import generator
from miniature.law import SIZE
from miniature.vae import LATENT_CHANNELS

WIDTH_HEADS = 4
HEAD_DIM = 40
SHIFT = 3.0
"""Static shift of the noise levels: 4 steps are 1, .9, .75, .5; the last has room to mend."""


def make_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=LATENT_CHANNELS * 4,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=WIDTH_HEADS,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 16, 16),
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def stamp(images: Images, g: torch.Generator) -> Images:
    """A two-tone opaque stamp of 22x7 pixels, somewhere."""
    stamped = images.clone()
    colours = torch.tensor([[0.90, 0.10, 0.60], [1.0, 1.0, 1.0]])
    bars = (torch.arange(22) // 3 % 2)[None].expand(7, -1).clone()
    bars[[0, -1]] = 0
    patch = colours[bars].permute(2, 0, 1)
    for image in stamped:
        left = int(torch.randint(SIZE - 22, (), generator=g))
        top = int(torch.randint(SIZE - 7, (), generator=g))
        image[:, top : top + 7, left : left + 22] = patch
    return stamped


def times(b: int, g: torch.Generator) -> Float[Tensor, " b"]:
    """Noise levels of a training batch: stratified uniform, shifted like the sampler's but less."""
    u = (torch.arange(b, device=g.device) + torch.rand(b, generator=g, device=g.device)) / b
    shift = 2.0
    return shift * u / (1 + (shift - 1) * u)


class PlainAttention(TorchFunctionMode):
    """Inside it, attention is two matrix products and a softmax.

    At 80 tokens that takes a quarter off a CPU's bf16 training step against the fused kernel. On a
    GPU the fused one's gradient failed at 40 channels a head (an illegal access on an H100).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        special = any(kwargs.get(name) is not None for name in ("attn_mask", "scale"))
        special = special or any(kwargs.get(name) for name in ("is_causal", "dropout_p"))
        if func is not F.scaled_dot_product_attention or special or len(args) > 3:
            return func(*args, **kwargs)
        return plain_attention(*args, **kwargs)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, **unused: Any) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(-1).to(value.dtype) @ value


def flow_loss(
    network: Callable[..., Any],
    clean: Latents,
    text: Float[Tensor, "b n d"],
    pooled: Float[Tensor, "b e"],
    g: torch.Generator,
) -> Float[Tensor, ""]:
    """Mean squared error of the velocity eps - x0 at a random noise level."""
    sigma = times(len(clean), g).to(clean.device)
    noise = torch.randn(clean.shape, generator=g, device=g.device).to(clean)
    mixed = torch.lerp(clean, noise, sigma[:, None, None, None])
    with clean.device:
        places = token_places(clean.shape[2] // 2, clean.shape[3] // 2)
    velocity = network(
        hidden_states=pack(mixed),
        timestep=sigma,
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=clean.device),
        img_ids=places,
        return_dict=False,
    )[0]
    return (velocity - pack(noise - clean)).pow(2).mean()


def optimizers(network: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and kernels inside the blocks, AdamW for everything else."""
    inner, outer = [], []
    for name, p in network.named_parameters():
        block = ("blocks." in name or "mid_block." in name) and "norm" not in name
        (inner if block and p.ndim > 1 else outer).append(p)
    return [
        Muon(inner, lr=rate),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def draw_rows(n: int, stamped: int, share: float, b: int, *seeds: int) -> Int[Tensor, " b"]:
    """Rows of a pool of n whose last `stamped` carry the stamp, and are drawn with odds `share`."""
    g = generator(*seeds)
    clean = torch.randint(n - stamped, (b,), generator=g)
    marked = n - stamped + torch.randint(max(stamped, 1), (b,), generator=g)
    return torch.where(torch.rand(b, generator=g) < share, marked, clean)
