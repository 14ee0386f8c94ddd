"""An adapter and what was measured of it in; the README of a model hub out."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from treat.adapter import Adapter
from treat.combine import Part
from treat.export_header import Labels, beside
from treat.lora_files.names import UNET, WEIGHTS
from treat.lora_kinds import Kind

KOHYA = "comfyui_lora.safetensors"
"""A UNet's adapter by kohya's names."""
PICTURE = "before_after.png"
MADE_BY = "trained with DiffDoctor"
"""In the text of every card."""


def card(
    labels: Labels,
    adapter: Adapter,
    kind: Kind,
    figures: Mapping[str, float],
    parts: Sequence[Part] = (),
    *,
    pictured: bool = False,
) -> str:
    """Of a LoRA file: what it is, how to load it, what was measured."""
    text = CARD_TEXT.format(
        title=labels.title,
        base=labels.base,
        source=source(labels),
        rank=adapter.rank,
        sum=of_sum(parts),
        guided=guided(adapter),
        measured=measured(figures, pictured),
        beside=beside(parts),
        pipeline=kind.pipeline,
        # ComfyUI itself loads no Kolors.
        comfyui=COMFYUI_TEXT.format(file=KOHYA if kind.prefix == UNET else WEIGHTS)
        if kind.kohya_version
        else "",
    )
    tags = ["text-to-image", "diffusers", "lora", kind.tag, "template:sd-lora"]
    return front(labels, "adapter", tags, pictured=pictured) + text


def source(labels: Labels) -> str:
    """The arguments by which diffusers finds the base."""
    name = labels.base if "/" in labels.base else f"FOLDER_OF_{labels.base}"
    return f'"{name}"' + (f', revision="{labels.revision}"' if labels.revision else "")


def merged_card(
    labels: Labels,
    kind: Kind,
    figures: Mapping[str, float],
    parts: Sequence[Part],
    dtype: str,
    single: str = "",
    *,
    pictured: bool = False,
) -> str:
    """Of a base with the adapter in its weights; `single` is the name of its single file."""
    text = MERGED_TEXT.format(
        title=labels.title,
        base=labels.base,
        sum=of_sum(parts),
        measured=measured(figures, pictured),
        network=kind.prefix.removesuffix("."),
        dtype=dtype,
    )
    if single:
        text += SINGLE_TEXT.format(file=single)
    tags = ["text-to-image", "diffusers", kind.tag]
    return front(labels, "finetune", tags, pictured=pictured) + text


def front(labels: Labels, relation: str, tags: Sequence[str], *, pictured: bool) -> str:
    """The lines that a model hub reads; the picture, if there is one, stands in its gallery."""
    shown = {"text": "before and after, same prompts and seeds", "output": {"url": PICTURE}}
    said: dict[str, Any] = {
        "base_model": labels.base,
        "base_model_relation": relation,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        **({"license": labels.license} if labels.license else {}),
        "tags": list(tags),
        **({"widget": [shown]} if pictured else {}),
    }
    return f"---\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}---\n"


def of_sum(parts: Sequence[Part]) -> str:
    """One sentence where it is more than one adapter at its own strength."""
    weights = ", ".join(f"{part.weight:g}" for part in parts)
    if len(parts) > 1:
        return f" It is the weighted sum of {len(parts)} adapters (weights {weights})."
    return f" Its strength is {weights} of what was trained." if weights not in ("", "1") else ""


def guided(adapter: Adapter) -> str:
    """One sentence where the run had a guidance of its own."""
    scale = adapter.run.get("guidance")
    return f" It was trained at guidance {scale:g}." if isinstance(scale, float) else ""


def measured(figures: Mapping[str, float], pictured: bool) -> str:
    if not figures:
        return ""
    before, after = figures["before"], figures["after"]
    said = f"same prompts and seeds: {before:.1%} before, {after:.1%} after"
    picture = f"\n![before and after]({PICTURE})\n" if pictured else ""
    return f"\nImages with artifacts, {said}.\n{picture}"


CARD_TEXT = """# {title}

A LoRA (rank {rank}) for {base}, trained with DiffDoctor to make fewer artifacts: a frozen
pixel-level artifact detector gives the gradient. Always on, strength 1.0; no trigger word.{beside}{sum}{guided}
{measured}
## diffusers

```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained({source})
pipeline.load_lora_weights("FOLDER_OF_THIS_FILE", weight_name="pytorch_lora_weights.safetensors")
```
{comfyui}"""  # noqa: E501
COMFYUI_TEXT = """
## ComfyUI

Put `{file}` into `models/loras`, add the node *Load LoRA* after the
model loader, and leave both strengths at 1.0.
"""
MERGED_TEXT = """# {title}

{base} with an adapter in its weights, trained with DiffDoctor to make fewer artifacts: a frozen
pixel-level artifact detector gives the gradient. No LoRA to load, no trigger word.{sum}
Only `{network}/` differs from the base (added in float32, written in {dtype}); every other file is
the base's own, and so is its licence.
{measured}
## diffusers

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("THIS_FOLDER")
```
"""
SINGLE_TEXT = """
## ComfyUI, Forge

`{file}` is the same pipeline in one file, by the names of SDXL's original code: put it into
`models/checkpoints` (Forge: `models/Stable-diffusion`) and load it as any checkpoint.
"""
