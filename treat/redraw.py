"""Sound images and a base model in; the same images as the model would finish them out.

Noised to the level of a late enough step and drawn to the end (SDEdit, Meng et al. 2022, arXiv
2108.01073), an image keeps its content and gains the model's own artifacts. Once labelled, it
stands beside the original it was made from: a broken image whose mend is known, which is what
`diffdoctor detector train --alignment` learns from.
"""

from collections.abc import Sequence

import torch

from core.contracts import DiffusionModel, Images
from core.images import round_to_8bit


@torch.no_grad()
def redraw(
    model: DiffusionModel,
    images: Images,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    start: int,
) -> Images:
    """One batch, the sampling entered at step `start` of `steps`; 8-bit, on the CPU.

    At step 0 little of the image is left, at the last one little is changed.
    """
    height, width = images.shape[-2:]
    schedule, text = model.schedule(steps, height, width), model.encode_prompts(prompts)
    latents = model.encode(images)
    noise = model.noise(seeds, height, width)
    latents = model.noised(latents, start, schedule, noise)
    for i in range(start, steps):
        latents = model.step(latents, i, schedule, text)
    return round_to_8bit(model.decode(latents)).cpu()
