"""One treat step in three phases, so that no autograd graph reaches from one step to another.

1. `draw`: all T steps, none with a graph of the network; what enters the K that learn is kept.
2. `latent_gradient`: decode, look, score; the gradient at the final latents. One graph holds
   decoder and detector (image and gradient are freed as it is walked), or each has its own.
3. `replay`: these steps in reverse, each recomputed with gradient and pulled back through.

Nothing is drawn at random here, nothing logged and nothing moved. With gamma 1 the gradient of the
weights equals plain back-propagation to the bit: in fp32, under bf16 autocast, with a base in bf16.

Legend: b batch, h w pixels, T sampling steps, K of them learn.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from base_models.sample import Precision, around, decode
from core.contracts import Conditioning, DiffusionModel, Images, Latents, Schedule
from core.errors import UserError
from treat.lora import casts_kept

Loss = Callable[[Images], Float[Tensor, ""]]


@dataclass(frozen=True)
class Chain:
    """What every step of one drawing shares; `gamma` discounts the gradient between steps."""

    model: DiffusionModel
    schedule: Schedule
    conditioning: Conditioning
    gamma: float = 1.0
    precision: Precision = nullcontext

    def step(self, latents: Latents, i: int) -> Latents:
        with around(self.model.network, self.precision):
            return self.model.step(latents, i, self.schedule, self.conditioning)

    def learning_step(self, latents: Latents, i: int) -> Latents:
        with scaled_input(self.model.network, self.gamma):
            return self.step(latents, i)

    def passing_step(self, latents: Latents, i: int) -> Latents:
        with without_gradient(self.model.network):
            return self.step(latents, i)

    def decode(self, latents: Latents) -> Images:
        return decode(self.model, latents, self.precision)


@dataclass(frozen=True)
class Taped:
    """Step i of T: what entered it and, where the graph was kept, what left it."""

    i: int
    entering: Latents
    leaving: Latents | None


def draw(
    chain: Chain, noise: Latents, learning: Collection[int], recompute: bool = True
) -> tuple[Latents, list[Taped]]:
    """Phase 1: the final latents, and the tape from the first of the `learning` steps on.

    Without `recompute` the graphs of these steps are kept, each for itself: `replay` then costs
    K forward passes less, and K graphs are held at once. A step between two that learn passes the
    gradient on along the sampler's own path, which is all that is kept of it (DRTune, Wu et al.
    2024, arXiv 2405.00760). Raises `UserError` for a step that the sampler has not.
    """
    latents, tape = noise, []
    total = chain.schedule.steps
    strange = sorted(set(learning) - set(range(total)))
    if strange:
        raise UserError(f"learning names {strange}: the sampler has steps 0 to {total - 1}.")
    first = min(learning, default=total)
    with casts_kept(chain.model.network):
        for i in range(total):
            entering, leaving = latents, None
            learns = i in learning
            if i < first or (learns and recompute):
                with torch.no_grad():
                    latents = chain.step(latents, i)
            else:
                entering = _leaf(latents, i > first)  # before the first nothing could learn
                leaving = (chain.learning_step if learns else chain.passing_step)(entering, i)
                latents = leaving.detach()
            if i >= first:
                tape.append(Taped(i, entering, leaving))
    return latents, tape


def latent_gradient(chain: Chain, latents: Latents, loss: Loss, two_pass: bool = False) -> Latents:
    """Phase 2: the gradient of the decoded images' loss at the final latents.

    `two_pass` decodes twice, so that the graphs of decoder and detector never live together; the
    gradient is the same to the bit.
    """
    latents = _leaf(latents)
    if two_pass:
        with torch.no_grad():
            images = chain.decode(latents)
        pixels = _leaf(images)
        _score(chain, pixels, loss).backward()
        chain.decode(latents).backward(_gradient(pixels))
    else:
        _score(chain, chain.decode(latents), loss).backward()
    return _gradient(latents)


def _score(chain: Chain, images: Images, loss: Loss) -> Float[Tensor, ""]:
    with chain.precision():
        return loss(images)


def replay(chain: Chain, tape: list[Taped], gradient: Latents) -> None:
    """Phase 3: add the gradient of every taped step to the adapters' `.grad`.

    What comes back through the model's input is multiplied by gamma, the sampler's own path is
    not: 1 is back-propagation, 0 stops at the input (and is not computed).
    """
    for taped in reversed(tape):
        entering, leaving = taped.entering, taped.leaving
        if leaving is None:
            entering = _leaf(entering, taped is not tape[0])
            leaving = chain.learning_step(entering, taped.i)
        leaving.backward(gradient)
        if taped is not tape[0]:
            gradient = _gradient(entering)


@contextmanager
def scaled_input(network: nn.Module, gamma: float) -> Iterator[None]:
    """Within, gradient leaving through the network's first argument is multiplied by gamma.

    x.detach() + gamma (x - x.detach()), of the same value as x: LeapAlign and DRTune's discount.
    """

    def discount(_network: nn.Module, arguments: tuple) -> tuple:
        x = arguments[0]
        x = torch.lerp(x.detach(), x, gamma) if gamma else x.detach()
        return (x, *arguments[1:])

    if gamma == 1.0:
        yield
        return
    handle = network.register_forward_pre_hook(discount)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_gradient(network: nn.Module) -> Iterator[None]:
    """Within, the network leaves no graph; what the sampler does around it does."""

    before = []

    def closed(*_: object) -> None:
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def opened(*_: object) -> None:
        torch.set_grad_enabled(before.pop())

    handles = [
        network.register_forward_pre_hook(closed),
        network.register_forward_hook(opened, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leaf(values: Tensor, needs_gradient: bool = True) -> Tensor:
    return values.detach().requires_grad_(needs_gradient)


def _gradient(leaf: Tensor) -> Tensor:
    """Zeros where nothing reached the leaf (gamma 0 through an ancestral sampler, say)."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
