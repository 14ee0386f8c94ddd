"""A pipeline of diffusers that is of no family here in, its images for prompts and seeds out.

It cannot be treated, for nothing is known of its latents, but it can draw.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from base_models.load import check_components, left_out, pipeline_class
from core.contracts import Images
from core.errors import UserError
from core.images import round_to_8bit

NEEDED = ("prompt", "height", "width", "num_inference_steps", "generator", "output_type")
"""What a pipeline must let one say."""

Draw = Callable[[Sequence[str], Sequence[int]], Images]


def check_foreign(folder: Path, guidance: float | None = None) -> None:
    """Raise `UserError` unless it draws prompts, with a guidance if one is asked, is whole, and
    needs nobody's code."""
    name = pipeline_class(folder)
    pipeline = getattr(diffusers, name, None)
    if not (inspect.isclass(pipeline) and issubclass(pipeline, DiffusionPipeline)):
        raise UserError(f"{folder} holds a {name}, which this version of diffusers does not have.")
    takes = inspect.signature(pipeline.__call__).parameters  # pyright: ignore
    missing = [name for name in NEEDED if name not in takes]
    if missing:
        raise UserError(f"a {name} takes no {missing[0]}: name a pipeline that draws prompts.")
    if guidance is not None and "guidance_scale" not in takes:
        raise UserError(f"a {name} draws without guidance: leave --guidance out.")
    check_components(folder)


def open_foreign(
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    steps: int,
    height: int | None,
    width: int | None,
    guidance: float | None,
) -> Draw:
    """One image a prompt, from the pipeline's own call with a generator of each seed.

    A side of None is the pipeline's own.
    """
    unchecked = left_out(folder)  # nor needed
    pipeline: Any = DiffusionPipeline.from_pretrained(
        folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, **unchecked
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    said: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        try:
            found = pipeline(
                prompt=list(prompts),
                height=height,
                width=width,
                num_inference_steps=steps,
                generator=generators,
                output_type="pt",
                **said,
            )
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder} cannot draw this ({error}); mend the settings.") from error
        return round_to_8bit(found.images.float().clamp(0, 1)).cpu()

    return draw
