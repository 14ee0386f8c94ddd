"""Stable Diffusion 3 and 3.5: in, diffusers' components; out, a `DiffusionModel`.

Legend: b batch, h w pixels, c y x latent channels and cells, n text tokens.
Follows `StableDiffusion3Pipeline` to the bit in fp32, guided or not.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from base_models import flow
from base_models.latents import check_places, check_sides, starting_noise
from base_models.sdxl import TwoClips
from base_models.unet import CHUNK, EMPTY
from core.contracts import Conditioning, Images, Latents, Schedule
from core.errors import UserError

GUIDANCE = 7.0
"""The pipeline's default."""
TEXT_TOKENS = 256
"""Of T5: the pipeline's default; the tokenizer's own limit counts where it is lower."""
PATCH = 2
"""Cells on a token's side, in every release."""
ATTENTION = [
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
]
DUAL = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]
"""3.5 medium attends to the image a second time in some of its blocks."""
MLP = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]


@final
class StableDiffusion3:
    """The SD 3 family behind the contract of `core.contracts.DiffusionModel`; all frozen.

    `guidance` is the scale of classifier-free guidance, off at 1 and below. Without `learn_empty`
    the gradient passes the prompt's half only; the images are the same. T5 may be absent;
    `text_tokens` overrides the length of its prompts.
    """

    family = "sd3"

    def __init__(
        self,
        pipeline: Any,
        *,
        guidance: float = GUIDANCE,
        learn_empty: bool = True,
        text_tokens: int | None = None,
    ) -> None:
        self.network, self.vae = pipeline.transformer, pipeline.vae
        self.scheduler = pipeline.scheduler
        self.clips: TwoClips | None = TwoClips(pipeline)
        self.t5, self.t5_tokenizer = pipeline.text_encoder_3, pipeline.tokenizer_3
        self.guidance = guidance
        self.learn_empty = learn_empty
        self.cells = 2 ** (len(self.vae.config.block_out_channels) - 1)
        limit = self.t5_tokenizer.model_max_length if self.t5 else TEXT_TOKENS
        self.text_tokens = text_tokens or min(limit, TEXT_TOKENS)
        for module in (self.network, self.vae, *self._text_encoders()):
            module.requires_grad_(False).train(False)
        flow.check_deterministic(self.scheduler)

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    def to(self, device: torch.device | str) -> "StableDiffusion3":
        self.encoders_to(device)
        self.network.to(device)
        return self

    def encoders_to(self, device: torch.device | str) -> None:
        """Text encoders and autoencoder: what is needed before the network is."""
        for module in (self.vae, *self._text_encoders()):
            module.to(device)

    def drop_text_encoders(self) -> None:
        """Free them once every prompt is encoded; `encode_prompts` fails afterwards."""
        self.clips = self.t5 = None

    def _text_encoders(self) -> list[nn.Module]:
        clips = self.clips.encoders if self.clips else []
        return [*clips, *([self.t5] if self.t5 else [])]

    # Text

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """`text` (b, n, d), `pooled` (b, e), and both for the empty prompt (`empty_...`)."""
        chunks = [self._both(prompts[at : at + CHUNK]) for at in range(0, len(prompts), CHUNK)]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _both(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        empty = self._read([""] * len(prompts))
        return self._read(prompts) | {EMPTY + name: rows for name, rows in empty.items()}

    def _read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The two CLIPs' words side by side, then T5's; the CLIPs' summaries side by side."""
        if self.clips is None:
            raise RuntimeError("The text encoders were dropped.")
        words, pooled = self.clips.states(prompts)
        width = self.network.config.joint_attention_dim
        first = F.pad(torch.cat(words, -1), (0, width - sum(w.shape[-1] for w in words)))
        return {
            "text": torch.cat([first, self._t5(prompts, first)], 1),
            "pooled": torch.cat(pooled, -1),
        }

    def _t5(self, prompts: Sequence[str], like: Tensor) -> Tensor:
        if self.t5 is None:
            return like.new_zeros(len(prompts), self.text_tokens, like.shape[-1])
        ids = self.t5_tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.text_tokens,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).input_ids
        return self.t5(ids.to(self.device))[0]

    # Sampling

    def schedule(self, steps: int, height: int, width: int) -> Schedule:
        """The scheduler's own sigmas, shifted by the number of tokens where it says so."""
        y, x = self._latent_size(height, width)
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        dynamic = scheduler.config.get("use_dynamic_shifting")
        shift = {"mu": self._mu(y, x)} if dynamic else {}
        scheduler.set_timesteps(steps, device=self.device, **shift)
        return Schedule(scheduler.sigmas, scheduler.timesteps, height, width)

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Latents:
        """As the pipeline draws it, a pure function of each seed."""
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
        """empty + guidance (said - empty), guidance 1 + w of Ho and Salimans (arXiv 2207.12598)."""
        if self.guidance <= 1:
            return self._predict(latents, timesteps, conditioning)
        names = ("text", "pooled")
        both = {n: torch.cat([conditioning[EMPTY + n], conditioning[n]]) for n in names}
        twice = torch.cat([latents, latents]), torch.cat([timesteps, timesteps])
        empty, said = self._predict(*twice, both).chunk(2)
        if not self.learn_empty:
            empty = empty.detach()
        return empty + self.guidance * (said - empty)

    def _predict(
        self, latents: Latents, timesteps: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Latents:
        """`latents` is the network's first argument: `treat.step` scales its gradient."""
        text = conditioning["text"]
        return self.network(
            latents.to(text.dtype),
            timestep=timesteps,
            encoder_hidden_states=text,
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )[0].float()

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
        """Without guidance; see `base_models.flow.flow_loss`."""
        mu = self._mu(*clean.shape[-2:])
        predict = partial(self._predict, conditioning=conditioning)
        return flow.flow_loss(predict, self.scheduler, mu, clean, seeds)

    def _mu(self, y: int, x: int) -> float:
        return flow.dynamic_shift(self.scheduler, (y // PATCH) * (x // PATCH))

    def lora_targets(self, preset: str) -> list[str]:
        """`attention`, or `attention+mlp`; what the last block asks for the text goes nowhere."""
        config = self.network.config
        asked = [f"transformer_blocks.{i}.attn.add_q_proj" for i in range(config.num_layers - 1)]
        attention = [*ATTENTION, *asked, *(DUAL if config.dual_attention_layers else [])]
        presets = {"attention": attention, "attention+mlp": [*attention, *MLP]}
        if preset not in presets:
            raise UserError(f"No LoRA targets '{preset}': choose one of {', '.join(presets)}.")
        return presets[preset]

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        check_sides(height, width, grain(self.cells))
        places = self.network.config.pos_embed_max_size
        check_places(height, width, places, grain(self.cells))
        return height // self.cells, width // self.cells


def grain(cells: int) -> int:
    """Pixels that both sides must divide by: 2x2 cells of `cells` pixels make a token."""
    return PATCH * cells
