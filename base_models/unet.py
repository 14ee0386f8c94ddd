"""The UNet families (SD, SDXL, Kolors): in, a pipeline and its text; out, a `DiffusionModel`.

Images equal the pipeline's to the bit in fp32, guided or not: a step is the step of the base's own
scheduler (Euler or DDIM), which gradient passes. Between steps latents are in that scheduler's
scale: x0 + sigma eps for Euler, sqrt(abar) x0 + sqrt(1 - abar) eps for DDIM. The noise they start
from is of unit deviation; the first step scales it.

Legend: b batch, h w pixels, c y x latent channels and cells, n text tokens.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from base_models.latents import check_sides, starting_noise
from base_models.samplers import StepSampler, one_step_scheduler
from core.contracts import Conditioning, Images, Latents, Schedule
from core.errors import UserError

CHUNK = 8
"""Prompts sent through the text encoders at once."""
EMPTY = "empty_"
"""Before the names of what the empty prompt says."""
ATTENTION = [f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0")]
MLP = ["ff.net.0.proj", "ff.net.2"]


@runtime_checkable
class Text(Protocol):
    """How a family reads prompts; the one thing in which these families differ."""

    encoders: list[Any]
    empty_is_zero: bool
    """Guidance starts from zeros, not from what the encoders say to the empty prompt."""

    def read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`text` (b, n, d) and, where the network takes sizes and a summary, `pooled` (b, e)."""
        ...


@final
class UNetModel:
    """A UNet family behind the contract of `core.contracts.DiffusionModel`; all frozen.

    `guidance` is the scale of classifier-free guidance, off at 1 and below. Without `learn_empty`
    the gradient passes the prompt's half only; the images are the same.
    """

    def __init__(
        self, family: str, pipeline: Any, text: Text, *, guidance: float, learn_empty: bool = True
    ) -> None:
        self.family = family
        self.network = pipeline.unet
        self.vae = pipeline.vae
        self.scheduler = one_step_scheduler(pipeline.scheduler)
        self.sampler = StepSampler(self.scheduler)
        self.text: Text | None = text
        self.guidance = guidance
        self.learn_empty = learn_empty
        self.cells = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.mean = per_channel(self.vae.config.get("latents_mean"), 0.0)
        self.deviation = per_channel(self.vae.config.get("latents_std"), 1.0)
        for module in (self.network, self.vae, *text.encoders):
            module.requires_grad_(False).eval()
        if self.network.config.time_cond_proj_dim is not None:
            raise UserError(
                "This base's guidance is distilled into its network, which is not supported: "
                "name the base that it was distilled from."
            )
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.float()  # SDXL's overflows in fp16

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    def to(self, device: torch.device | str) -> "UNetModel":
        self.encoders_to(device)
        self.network.to(device)
        return self

    def encoders_to(self, device: torch.device | str) -> None:
        """Text encoders and autoencoder: what is needed before the network is."""
        for module in (self.vae, *self._text_encoders()):
            module.to(device)

    def drop_text_encoders(self) -> None:
        """Free them once every prompt is encoded; `encode_prompts` fails afterwards."""
        self.text = None

    def _text_encoders(self) -> list[nn.Module]:
        return self.text.encoders if self.text else []

    # Text

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """`text` (b, n, d), perhaps `pooled` (b, e), and both for the empty prompt (`empty_...`).

        Every row carries its empty half, whatever the guidance: a cached row is all that a step
        needs once the encoders are gone.
        """
        chunks = [self._read(prompts[at : at + CHUNK]) for at in range(0, len(prompts), CHUNK)]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.text is None:
            raise RuntimeError("The text encoders were dropped.")
        said = self.text.read(prompts)
        if self.text.empty_is_zero:
            empty = {name: torch.zeros_like(rows) for name, rows in said.items()}
        else:
            empty = self.text.read([""] * len(prompts))
        return said | {EMPTY + name: rows for name, rows in empty.items()}

    # Sampling

    def schedule(self, steps: int, height: int, width: int) -> Schedule:
        """See `StepSampler`: the scheduler's own times and sigmas."""
        self._latent_size(height, width)
        return self.sampler.schedule(steps, height, width, self.device)

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Latents:
        """As the pipeline draws it before scaling, a pure function of each seed."""
        y, x = self._latent_size(height, width)
        return starting_noise(seeds, self.vae.config.latent_channels, y, x).to(self.device)

    def step(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> Latents:
        """The scheduler's own step, in float32."""
        return self.move(latents, i, schedule, conditioning)[0]

    def clean_estimate(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> Latents:
        """x0-hat, as the scheduler takes it from epsilon or v."""
        return self.move(latents, i, schedule, conditioning)[1]

    def move(
        self, latents: Latents, i: int, schedule: Schedule, conditioning: Conditioning
    ) -> tuple[Latents, Latents]:
        """What `step` and `clean_estimate` return, from one pass."""
        predict = partial(self._guided, conditioning=conditioning)
        return self.sampler.move(predict, latents, i, schedule.steps)

    def noised(self, clean: Latents, i: int, schedule: Schedule, noise: Latents) -> Latents:
        """See `StepSampler.noised`."""
        return self.sampler.noised(clean, i, schedule, noise)

    def _guided(self, x: Latents, t: Tensor, conditioning: Conditioning) -> Latents:
        """empty + guidance (said - empty), guidance 1 + w of Ho and Salimans (arXiv 2207.12598)."""
        if self.guidance <= 1:
            return self._predict(x, t, conditioning)
        names = [name for name in ("text", "pooled") if name in conditioning]
        both = {n: torch.cat([conditioning[EMPTY + n], conditioning[n]]) for n in names}
        empty, said = self._predict(torch.cat([x, x]), t, both).chunk(2)
        if not self.learn_empty:
            empty = empty.detach()
        return empty + self.guidance * (said - empty)

    def _predict(self, x: Latents, t: Tensor, said: Conditioning) -> Latents:
        """Epsilon or v. x is the network's first argument: `treat.step` scales its gradient."""
        text, added = said["text"], None
        if "pooled" in said:
            h, w = x.shape[-2] * self.cells, x.shape[-1] * self.cells
            # Original size, corner of the crop, target size (SDXL, arXiv 2307.01952, section 2.2).
            sizes = torch.tensor([[h, w, 0, 0, h, w]], dtype=text.dtype, device=text.device)
            added = {"text_embeds": said["pooled"], "time_ids": sizes.repeat(len(x), 1)}
        return self.network(
            x.to(text.dtype),
            t,
            encoder_hidden_states=text,
            added_cond_kwargs=added,
            return_dict=False,
        )[0].float()

    # Pixels and latents

    def decode(self, latents: Latents) -> Images:
        mean, deviation = self.mean.to(latents), self.deviation.to(latents)
        z = latents * deviation / self.vae.config.scaling_factor + mean
        return self.vae.decode(z.to(self.vae.dtype), return_dict=False)[0].float() * 0.5 + 0.5

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        """(z - mean) * scale / deviation, z the mode of the posterior; mostly only the scale."""
        self._latent_size(*images.shape[-2:])
        z = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist.mode().float()
        return (z - self.mean.to(z)) * self.vae.config.scaling_factor / self.deviation.to(z)

    # Training

    def offline_loss(
        self, clean: Latents, conditioning: Conditioning, seeds: Sequence[int]
    ) -> Float[Tensor, ""]:
        """See `StepSampler.loss`; unguided."""
        predict = partial(self._predict, said=conditioning)
        return self.sampler.loss(predict, clean, seeds)

    def lora_targets(self, preset: str) -> list[str]:
        """`attention` (of the image and of the text), or `attention+mlp`."""
        presets = {"attention": ATTENTION, "attention+mlp": [*ATTENTION, *MLP]}
        if preset not in presets:
            raise UserError(f"No LoRA targets '{preset}': choose one of {', '.join(presets)}.")
        return presets[preset]

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        check_sides(height, width, grain(self.cells))
        return height // self.cells, width // self.cells


def grain(cells: int) -> int:
    """Pixels that both sides must divide by: a latent cell of `cells`, and 8 for the pipelines."""
    return max(8, cells)


def per_channel(values: Sequence[float] | None, default: float) -> Float[Tensor, "1 c 1 1"]:
    return torch.tensor(values or [default]).view(1, -1, 1, 1)


def clip_tokens(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Padded and cut to the length of CLIP."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
