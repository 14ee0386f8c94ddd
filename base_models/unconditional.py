"""Unconditional bases: in, a `DDPMPipeline`, `DDIMPipeline` or `LDMPipeline`; out, a model.

DDPM and Improved DDPM draw pixels, LDM the latents of an autoencoder (`VQModel` as CompVis' was
converted, or `AutoencoderKL`). Prompts are taken, as everywhere, and say nothing. Steps are DDIM's
without noise (Song et al. 2021, arXiv 2010.02502), whichever sampler the base ships with: equal to
`DDIMPipeline`'s and `LDMPipeline`'s with eta 0 to the bit, in fp32. Of an Improved DDPM (Nichol and
Dhariwal 2021, arXiv 2102.09672) the learnt variances, its further three channels, have no part in
such a step.

Legend: b batch, h w pixels, c y x latent channels and cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from base_models.latents import check_sides, starting_noise
from base_models.samplers import Amplify, StepSampler, one_step_scheduler
from core.contracts import Conditioning, Images, Latents, Schedule
from core.errors import UserError

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2"]
"""Of the residual blocks, which do here what a transformer's MLPs do."""


@final
class Pixels(nn.Module):
    """Where an autoencoder stands in other families: pixels in [-1, 1] are their own latents."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Identity()

    def enable_gradient_checkpointing(self) -> None:
        """There is nothing to compute again."""


@final
class Unconditional:
    """One of these families behind the contract of `core.contracts.DiffusionModel`; all frozen."""

    def __init__(self, family: str, pipeline: Any, autoencoder: Any) -> None:
        self.family = family
        self.network = pipeline.unet
        self.vae: Any = autoencoder
        for module in (self.network, self.vae):
            module.requires_grad_(False).eval()
        config, pixels = self.network.config, isinstance(autoencoder, Pixels)
        if config.class_embed_type is not None or config.num_class_embeds is not None:
            raise UserError("This base asks for a class label, which is not supported.")
        self.scheduler = one_step_scheduler(pipeline.scheduler, pixels)
        self.sampler = StepSampler(self.scheduler)
        self.channels = config.in_channels
        self.cells = 1 if pixels else halvings(autoencoder.config)
        self.scale = 1.0 if pixels else autoencoder.config.scaling_factor

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "Unconditional":
        self.encoders_to(device)
        self.network.to(device)
        return self

    def encoders_to(self, device: torch.device | str) -> None:
        """The autoencoder: there is no text to encode."""
        self.vae.to(device)

    def drop_text_encoders(self) -> None:
        """There are none."""

    # Sampling

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """`nothing` (b, 1): zeros, a row a prompt; no step reads them."""
        return {"nothing": torch.zeros(len(prompts), 1)}

    def schedule(self, steps: int, height: int, width: int) -> Schedule:
        """See `StepSampler`: the scheduler's own times and sigmas."""
        self._latent_size(height, width)
        return self.sampler.schedule(steps, height, width, self.device)

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Latents:
        """As the pipelines draw it, a pure function of each seed."""
        y, x = self._latent_size(height, width)
        return starting_noise(seeds, self.channels, y, x).to(self.device)

    def step(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> Latents:
        """DDIM, in float32."""
        return self.move(latents, i, schedule, conditioning)[0]

    def clean_estimate(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> Latents:
        """x0-hat, clipped to pixels where the base's scheduler says so."""
        return self.move(latents, i, schedule, conditioning)[1]

    def move(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> tuple[Latents, Latents]:
        """What `step` and `clean_estimate` return, from one pass."""
        return self.sampler.move(self._predict, latents, i, schedule.steps)

    def noised(self, clean: Latents, i: int, schedule: Schedule, noise: Latents) -> Latents:
        """See `StepSampler.noised`."""
        return self.sampler.noised(clean, i, schedule, noise)

    def _predict(self, x: Latents, t: Tensor) -> Latents:
        """Epsilon or v, without the learnt variances that may come after."""
        prediction = self.network(x.to(self.network.dtype), t, return_dict=False)[0]
        return prediction[:, : self.channels].float()

    # Pixels and latents

    def decode(self, latents: Latents) -> Images:
        if isinstance(self.vae, Pixels):
            return latents * 0.5 + 0.5
        vae = self.vae
        z = (latents / self.scale).to(vae.dtype)
        return vae.decode(z, return_dict=False)[0].float() * 0.5 + 0.5

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        """Pixels in [-1, 1]; or z times the scale, of an `AutoencoderKL` the mode."""
        self._latent_size(*images.shape[-2:])
        if isinstance(self.vae, Pixels):
            return images * 2 - 1
        vae = self.vae
        found = vae.encode((images * 2 - 1).to(vae.dtype))
        z = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        return z.float() * self.scale

    # Training

    def offline_loss(
        self, clean: Latents, conditioning: Conditioning, seeds: Sequence[int]
    ) -> Float[Tensor, ""]:
        """See `StepSampler.loss`: the simple loss, without the variances' own."""
        return self.sampler.loss(self._predict, clean, seeds)

    def amplified_loss(
        self, clean: Latents, seeds: Sequence[int], amplify: Amplify
    ) -> Float[Tensor, ""]:
        """The same with another noise, for `treat.self_refining`."""
        return self.sampler.loss(self._predict, clean, seeds, amplify)

    def lora_targets(self, preset: str) -> list[str]:
        """`attention`, or `attention+mlp`: besides, the residual blocks' convolutions."""
        presets = {"attention": ATTENTION, "attention+mlp": [*ATTENTION, *CONVOLUTIONS]}
        if preset not in presets:
            raise UserError(f"No LoRA targets '{preset}': choose one of {', '.join(presets)}.")
        return presets[preset]

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        check_sides(height, width, grain(self.cells) * halvings(self.network.config))
        return height // self.cells, width // self.cells


def pixels(pipeline: Any) -> Unconditional:
    """DDPM and Improved DDPM, as `DDPMPipeline` or `DDIMPipeline`."""
    return Unconditional("ddpm", pipeline, Pixels())


def latents(pipeline: Any) -> Unconditional:
    """LDM, as `LDMPipeline`."""
    return Unconditional("ldm", pipeline, pipeline.vqvae)


def grain(cells: int) -> int:
    """Pixels on the side of a cell; the network then halves the cells (`halvings`)."""
    return cells


def halvings(config: Mapping[str, Any]) -> int:
    """What the sides of a network's input must divide by: each of its levels but one halves."""
    return 2 ** (len(config["block_out_channels"]) - 1)
