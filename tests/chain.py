"""One drawing with its gradient, twice: phase-split as `treat.step` does it, and in one graph."""

from typing import Any

import torch

from treat.lora import add_lora, lora_parameters
from treat.pixel_loss import pixel_loss
from treat.step import Chain, draw, latent_gradient, replay

PROMPTS = ["a left hand", "a face"]


def with_adapters(model):
    """Rank 4, of weights that are not zero."""
    add_lora(model.network, 4, model.lora_targets("attention+mlp"), seed=1)
    for index, weights in enumerate(lora_parameters(model.network)):
        generator = torch.Generator().manual_seed(index)
        weights.data += torch.randn(weights.shape, generator=generator) * 0.1
    return model


class Spots(torch.nn.Module):
    """A stand-in detector: smooth, a little nonlinear, frozen."""

    differentiable = True

    def __init__(self):
        super().__init__()
        self.look = torch.nn.Conv2d(3, 1, 5, padding=2, bias=False)
        generator = torch.Generator().manual_seed(0)
        self.look.weight.data = torch.randn(1, 3, 5, 5, generator=generator) * 0.3
        self.requires_grad_(False)

    def forward(self, images):
        return self.look(images).float().sigmoid()


def score(images):
    return pixel_loss(Spots()(images), "threshold", 0.4)


def inputs(model, steps, size):
    """Noise, schedule, conditioning."""
    schedule = model.schedule(steps, size, size)
    return model.noise([3, 4], size, size), schedule, model.encode_prompts(PROMPTS)


def gradients(model) -> list[Any]:
    """The adapters', taken away from them."""
    found = [weights.grad for weights in lora_parameters(model.network)]
    for weights in lora_parameters(model.network):
        weights.grad = None
    return found


def split(model, given, learning, gamma, precision, *, recompute=True, two_pass=False):
    """The three phases of `treat.step`."""
    noise, schedule, text = given
    chain = Chain(model, schedule, text, gamma, precision)
    latents, tape = draw(chain, noise, learning, recompute)
    replay(chain, tape, latent_gradient(chain, latents, score, two_pass))
    return gradients(model)


def plain(model, given, learning, gamma, precision):
    """One graph from the noise to the loss; discount and cut steps as the papers write them."""
    latents, schedule, text = given

    def discount(_network, arguments):
        x = arguments[0]
        return (x.detach() + gamma * (x - x.detach()), *arguments[1:])

    def cut(_network, _arguments, output):
        return tuple(part.detach() for part in output)

    handle = model.network.register_forward_pre_hook(discount) if gamma != 1 else None
    with precision():  # one region: autocast forgets its cached weights where a region ends
        for i in range(schedule.steps):
            passing = None if i in learning else model.network.register_forward_hook(cut)
            with torch.set_grad_enabled(i >= min(learning)):
                latents = model.step(latents, i, schedule, text)
            if passing:
                passing.remove()
        loss = score(model.decode(latents))
    if handle:
        handle.remove()
    loss.backward()
    return gradients(model)


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
