"""A base's configs in, the same base without weights out: for counting what it would need."""

from pathlib import Path
from typing import Any

import diffusers
import torch

from base_models.load import FAMILIES, left_out, locate, read_parts
from base_models.networks import classes, quietly
from core.contracts import DiffusionModel


def open_outline(
    base: str, dtype: torch.dtype, **options: Any
) -> tuple[DiffusionModel, dict[str, torch.nn.Module]]:
    """The `DiffusionModel` on the meta device, and its networks by their names in the pipeline.

    No weight is needed, none is read. Tokenizers and the scheduler are real. Raises `UserError`
    and takes `options` as `load_base` does.
    """
    name, folder, parts = read_parts(locate(base, weights=False))
    found = classes(parts)
    networks = {part: _without_weights(cls, folder / part, dtype) for part, cls in found.items()}
    with quietly():
        pipeline = getattr(diffusers, name).from_pretrained(
            folder, local_files_only=True, **networks, **left_out(folder)
        )
    return FAMILIES[name].wrap(pipeline, **options), networks


def _without_weights(cls: Any, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            if hasattr(cls, "from_config"):  # diffusers'
                return cls.from_config(cls.load_config(folder))
            # transformers gives some layers the dtype that the config names.
            return cls(cls.config_class.from_pretrained(folder)).to(dtype)
    finally:
        torch.set_default_dtype(before)
