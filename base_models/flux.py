"""FLUX (schnell, dev and their like): in, diffusers' components; out, a `DiffusionModel`.

Legend: b batch, h w pixels, c y x latent channels and cells, n text tokens, l latent tokens.
Follows `FluxPipeline` to the bit in fp32; the sampling loop is open so that gradient can enter it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, final

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from jaxtyping import Float
from torch import Tensor, nn

from base_models import flow
from base_models.latents import check_sides, starting_noise
from core.contracts import Conditioning, Images, Latents, Schedule
from core.errors import UserError

TEXT_TOKENS = {"schnell": 256, "dev": 512}
"""What the two releases were trained with; the tokenizer's own limit counts where it is lower."""
CHUNK = 8
"""Prompts sent through the text encoders at once."""
ATTENTION = [
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
]
MLP = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"]


@final
class Flux:
    """The FLUX family behind the contract of `core.contracts.DiffusionModel`; all frozen.

    `guidance` reaches the network only where its config has `guidance_embeds`.
    `text_tokens` overrides the length that T5's prompts are padded to.
    """

    family = "flux"

    def __init__(
        self,
        network: Any,
        vae: Any,
        scheduler: Any,
        text: dict[str, Any],
        *,
        guidance: float = 3.5,
        text_tokens: int | None = None,
    ) -> None:
        for module in (network, vae, text["text_encoder"], text["text_encoder_2"]):
            module.requires_grad_(False).eval()
        flow.check_deterministic(scheduler)
        self.network = network
        self.vae = vae
        self.scheduler = scheduler
        self.text = text
        self.guidance = guidance
        self.cells = 2 ** (len(vae.config.block_out_channels) - 1)
        kind = "dev" if network.config.guidance_embeds else "schnell"
        limit = text["tokenizer_2"].model_max_length
        self.text_tokens = text_tokens or min(limit, TEXT_TOKENS[kind])

    @classmethod
    def from_pipeline(cls, pipeline: Any, **options: Any) -> "Flux":
        """Take over the components of a loaded `FluxPipeline`."""
        names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        text = {name: getattr(pipeline, name) for name in names}
        return cls(pipeline.transformer, pipeline.vae, pipeline.scheduler, text, **options)

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    def to(self, device: torch.device | str) -> "Flux":
        self.encoders_to(device)
        self.network.to(device)
        return self

    def encoders_to(self, device: torch.device | str) -> None:
        """Text encoders and autoencoder: what is needed before the network is."""
        for module in (self.vae, *self._text_encoders()):
            module.to(device)

    def drop_text_encoders(self) -> None:
        """Free them once every prompt is encoded; `encode_prompts` fails afterwards."""
        self.text = {}

    def _text_encoders(self) -> list[nn.Module]:
        return [module for module in self.text.values() if isinstance(module, nn.Module)]

    # Text

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """`text` (b, n, d) from T5 and `pooled` (b, e) from CLIP."""
        chunks = [prompts[at : at + CHUNK] for at in range(0, len(prompts), CHUNK)]
        length = self.text["tokenizer"].model_max_length
        text = [self._read(chunk, "_2", self.text_tokens)[0] for chunk in chunks]
        pooled = [self._read(chunk, "", length).pooler_output for chunk in chunks]
        return {"text": torch.cat(text), "pooled": torch.cat(pooled)}

    def _read(self, prompts: Sequence[str], which: str, length: int) -> Any:
        ids = self.text["tokenizer" + which](
            list(prompts),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text["text_encoder" + which](ids.to(self.device), output_hidden_states=False)

    # Sampling

    def schedule(self, steps: int, height: int, width: int) -> Schedule:
        """The scheduler's own sigmas: mu from the sequence length, or its static shift."""
        y, x = self._latent_size(height, width)
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        sigmas = (
            None if scheduler.config.get("use_flow_sigmas") else np.linspace(1, 1 / steps, steps)
        )
        mu = self._mu(y * x // 4)
        scheduler.set_timesteps(steps, device=self.device, sigmas=sigmas, mu=mu)
        return Schedule(scheduler.sigmas, scheduler.timesteps, height, width)

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Latents:
        """As `FluxPipeline` draws it, a pure function of each seed."""
        y, x = self._latent_size(height, width)
        return starting_noise(seeds, self.vae.config.latent_channels, y, x).to(self.device)

    def step(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> Latents:
        """Euler: x + (sigma_next - sigma) v, in float32."""
        return self.move(latents, i, schedule, conditioning)[0]

    def clean_estimate(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> Latents:
        """x0-hat = x - sigma v."""
        return self.move(latents, i, schedule, conditioning)[1]

    def move(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> tuple[Latents, Latents]:
        """What `step` and `clean_estimate` return, from one pass."""
        v = self._velocity(latents, schedule.timesteps[i].expand(len(latents)), conditioning)
        return flow.euler(latents, v, schedule.sigmas[i], schedule.sigmas[i + 1])

    def noised(self, clean: Latents, i: int, schedule: Schedule, noise: Latents) -> Latents:
        """(1 - sigma) x0 + sigma eps."""
        return torch.lerp(clean, noise, schedule.sigmas[i].to(clean))

    def _velocity(
        self, latents: Latents, timesteps: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Latents:
        """The noisy tokens are the network's first argument: `treat.step` scales their gradient."""
        b, _, y, x = latents.shape
        text = conditioning["text"]
        dtype = text.dtype
        guided = self.network.config.guidance_embeds
        v = self.network(
            pack(latents).to(dtype),
            timestep=timesteps.to(dtype) / 1000,
            guidance=torch.full((b,), self.guidance, device=latents.device) if guided else None,
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=latents.device, dtype=dtype),
            img_ids=token_places(y // 2, x // 2).to(latents.device, dtype),
            return_dict=False,
        )[0]
        return unpack(v.float(), y, x)

    # Pixels and latents

    def decode(self, latents: Latents) -> Images:
        return flow.decode(self.vae, latents)

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        """(z - shift) * scale, z the mode of the posterior."""
        self._latent_size(*images.shape[-2:])
        return flow.encode(self.vae, images)

    # Training

    def offline_loss(
        self, clean: Latents, conditioning: Conditioning, seeds: Sequence[int]
    ) -> Float[Tensor, ""]:
        """See `base_models.flow.flow_loss`."""
        mu = self._mu(clean.shape[-2] * clean.shape[-1] // 4)
        predict = partial(self._velocity, conditioning=conditioning)
        return flow.flow_loss(predict, self.scheduler, mu, clean, seeds)

    def _mu(self, tokens: int) -> float:
        return flow.dynamic_shift(self.scheduler, tokens)

    def lora_targets(self, preset: str) -> list[str]:
        """`attention`, or `attention+mlp`; the network's last projection stays as it is."""
        singles = [
            f"single_transformer_blocks.{i}.proj_out"
            for i in range(self.network.config.num_single_layers)
        ]
        presets = {"attention": ATTENTION, "attention+mlp": [*ATTENTION, *MLP, *singles]}
        if preset not in presets:
            raise UserError(f"No LoRA targets '{preset}': choose one of {', '.join(presets)}.")
        return presets[preset]

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        check_sides(height, width, grain(self.cells))
        return height // self.cells, width // self.cells


def grain(cells: int) -> int:
    """Pixels that both sides must divide by: 2x2 cells of `cells` pixels make a token."""
    return 2 * cells


def pack(latents: Latents) -> Float[Tensor, "b l d"]:
    """2x2 cells become one token."""
    b, c, y, x = latents.shape
    cells = latents.view(b, c, y // 2, 2, x // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(b, (y // 2) * (x // 2), c * 4)


def unpack(tokens: Float[Tensor, "b l d"], y: int, x: int) -> Latents:
    b, _, d = tokens.shape
    cells = tokens.view(b, y // 2, x // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(b, d // 4, y, x)


def token_places(rows: int, columns: int) -> Float[Tensor, "l 3"]:
    places = torch.zeros(rows, columns, 3)
    places[..., 1] = torch.arange(rows)[:, None]
    places[..., 2] = torch.arange(columns)[None]
    return places.view(rows * columns, 3)
