"""Every family, in the variants that its wrapper has to know apart, on tiny random weights."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from base_models import flux, kolors, sd, sdxl, unconditional
from base_models.sd3 import StableDiffusion3
from tests.tiny import SIZE, T5_TOKENS, tiny_pipeline, unets
from tests.tiny import unconditional as plain
from tests.tiny.sd3 import tiny_sd3

HEIGHT, WIDTH = SIZE, SIZE + 16
"""Not square, so that no family can take one side for the other."""
PROMPTS = ["a left hand, dark skin", "a face"]
MOMENTS = {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [0.8, 1.1, 1.3, 0.9]}


class Case(NamedTuple):
    pipeline: Callable[[], Any]
    wrap: Callable[..., Any]
    scaled: Callable[[torch.Tensor], torch.Tensor]
    """The autoencoder's z -> latents."""
    options: dict[str, Any] = {}

    def model(self, pipeline: Any = None) -> Any:
        return self.wrap(pipeline or self.pipeline(), **self.options)


def by_moments(z):
    mean, deviation = (torch.tensor(values).view(1, 4, 1, 1) for values in MOMENTS.values())
    return (z - mean) * 0.7 / deviation


Flux = functools.partial(Case, wrap=flux.Flux.from_pipeline, scaled=lambda z: (z - 0.15) * 1.3)
SDXL = functools.partial(Case, wrap=sdxl.from_pipeline, scaled=lambda z: z * 0.7)
SD = functools.partial(Case, wrap=sd.from_pipeline, scaled=lambda z: z * 0.7)
Kolors = functools.partial(Case, wrap=kolors.from_pipeline, scaled=lambda z: z * 0.7)
SD3 = functools.partial(Case, wrap=StableDiffusion3, scaled=lambda z: (z - 0.15) * 1.3)
UNGUIDED = {"guidance": 1.0}
V = {"prediction_type": "v_prediction"}

CASES = {
    "flux": Flux(tiny_pipeline),
    "flux, dynamic shift": Flux(lambda: tiny_pipeline(dynamic_shift=True)),
    "flux, guidance embedded": Flux(lambda: tiny_pipeline(guidance_embeds=True)),
    "sdxl": SDXL(unets.tiny_sdxl),
    "sdxl, unguided": SDXL(unets.tiny_sdxl, options=UNGUIDED),
    "sdxl, v": SDXL(lambda: unets.tiny_sdxl(unets.euler(**V))),
    "sdxl, trailing": SDXL(lambda: unets.tiny_sdxl(unets.euler(timestep_spacing="trailing"))),
    "sdxl, DDIM": SDXL(lambda: unets.tiny_sdxl(unets.ddim())),
    "sdxl, empty prompt read": SDXL(lambda: unets.tiny_sdxl(force_zeros=False)),
    "sdxl, moments of latents": SDXL(lambda: unets.tiny_sdxl(vae=MOMENTS), scaled=by_moments),
    "sd": SD(unets.tiny_sd),
    "sd, unguided": SD(unets.tiny_sd, options=UNGUIDED),
    "sd, v": SD(lambda: unets.tiny_sd(unets.ddim(**V, set_alpha_to_one=True))),
    "sd, Euler": SD(lambda: unets.tiny_sd(unets.euler())),
    "sd3": SD3(tiny_sd3),
    "sd3, unguided": SD3(tiny_sd3, options=UNGUIDED),
    "sd3, dynamic shift": SD3(lambda: tiny_sd3(dynamic_shift=True)),
    "sd3, without T5": SD3(lambda: tiny_sd3(t5=False), options={"text_tokens": T5_TOKENS}),
    "kolors": Kolors(unets.tiny_kolors),
    "kolors, unguided": Kolors(unets.tiny_kolors, options=UNGUIDED),
    "kolors, v": Kolors(lambda: unets.tiny_kolors(unets.kolors_euler(**V))),
}

Pixels = functools.partial(Case, wrap=unconditional.pixels, scaled=lambda pixels: pixels)
Ldm = functools.partial(Case, wrap=unconditional.latents, scaled=lambda z: z * 0.7)
UNCONDITIONAL = {
    "ddpm": Pixels(plain.tiny_ddpm),
    "ddpm, v": Pixels(lambda: plain.tiny_ddpm(plain.ddpm(**V))),
    "ddpm, cosine, learnt variances": Pixels(plain.tiny_improved),
    "ddpm, as DDIMPipeline": Pixels(plain.tiny_ddim),
    "ldm": Ldm(plain.tiny_ldm),
    "ldm, v": Ldm(lambda: plain.tiny_ldm(plain.ddim(**plain.LDM, **V))),
    "ldm, AutoencoderKL": Ldm(lambda: plain.tiny_ldm(vq=False)),
}
"""Nothing that concerns prompts holds of these."""
EVERY = CASES | UNCONDITIONAL


def draw(model, prompts=PROMPTS, seeds=(3, 4), steps=3):
    """Images through the contract."""
    text, schedule = model.encode_prompts(prompts), model.schedule(steps, HEIGHT, WIDTH)
    latents = model.noise(seeds, HEIGHT, WIDTH)
    with torch.no_grad():
        for i in range(steps):
            latents = model.step(latents, i, schedule, text)
        return model.decode(latents).clamp(0, 1)


def pipeline_images(pipeline, guidance, seeds=(3, 4), steps=3, output="pt"):
    """Images of the plain pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    length = {"max_sequence_length": T5_TOKENS} if hasattr(pipeline, "transformer") else {}
    return pipeline(
        PROMPTS,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        output_type=output,
        **length,
    ).images
