"""A model, prompts and seeds in; images out, as a PNG would hold them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from core.contracts import Conditioning, DiffusionModel, Images, Latents
from core.errors import UserError
from core.images import round_to_8bit

HALVES = torch.bfloat16, torch.float16
Precision = Callable[[], AbstractContextManager]
"""Opens the autocast region that networks in float32 and detectors run in."""


def autocast(device: str, mixed_precision: str) -> Precision:
    """Without the weight cache: the gradients of weights it casts would be summed in bf16."""
    if mixed_precision == "no":
        return nullcontext
    return functools.partial(torch.autocast, device, torch.bfloat16, cache_enabled=False)


def around(network: nn.Module, precision: Precision) -> AbstractContextManager:
    """`precision`, but nothing for a network in half precision; its first frozen weight tells.

    It computes as its pipeline does for its users. On a GPU autocast would have its norms in
    float32 and cast what they give for every layer that reads it: memory, traffic and launches.
    """
    frozen = (w for w in network.parameters() if not w.requires_grad and w.is_floating_point())
    first = next(frozen, None)
    return precision() if first is None or first.dtype not in HALVES else nullcontext()


def decode(model: DiffusionModel, latents: Latents, precision: Precision) -> Images:
    """Pixels of latents."""
    with around(model.vae, precision):
        return model.decode(latents)


@torch.no_grad()
def sample(
    model: DiffusionModel,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    *,
    steps: int,
    height: int,
    width: int,
    batch: int = 16,
    precision: Precision = nullcontext,
) -> Images:
    """One image a seed, clamped and rounded to 8 bits, on the CPU.

    Raises `UserError` unless every prompt has its seed. `prompts` may be what `encode_prompts`
    returned, one row a seed. The batch changes no image's noise; its last bits may follow it
    through the library's matrix products.
    """
    if isinstance(prompts, str):
        raise UserError(f"sample takes a list of prompts: [{prompts!r}].")
    if not isinstance(prompts, Mapping) and len(prompts) != len(seeds):
        raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds: give each prompt its own.")
    if not seeds or steps < 1:
        raise UserError("sample draws one image a seed: give one seed and one step at least.")
    schedule = model.schedule(steps, height, width)
    images = []
    for at in range(0, len(seeds), batch):
        text = _encoded(model, prompts, at, min(at + batch, len(seeds)))
        latents = model.noise(seeds[at : at + batch], height, width)
        with around(model.network, precision):
            for i in range(steps):
                latents = model.step(latents, i, schedule, text)
        images.append(round_to_8bit(decode(model, latents, precision)).cpu())
    return torch.cat(images)


def _encoded(
    model: DiffusionModel, prompts: Sequence[str] | Conditioning, start: int, stop: int
) -> dict[str, Tensor]:
    if isinstance(prompts, Mapping):
        return {name: rows[start:stop] for name, rows in prompts.items()}
    return dict(model.encode_prompts(prompts[start:stop]))
