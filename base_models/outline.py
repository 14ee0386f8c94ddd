"""A base's configs in, the same base without weights out: for counting what it would need."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging

from base_models.load import FAMILIES, left_out, locate, read_parts
from core.contracts import DiffusionModel
from core.errors import UserError

KOLORS = "diffusers.pipelines.kolors"
"""Where diffusers keeps what model_index.json calls `kolors`."""


def open_outline(
    base: str, dtype: torch.dtype
) -> tuple[DiffusionModel, dict[str, torch.nn.Module]]:
    """The `DiffusionModel` on the meta device, and its networks by their names in the pipeline.

    No weight is needed, none is read. Tokenizers and the scheduler are real. Raises `UserError`
    as `load_base` does.
    """
    name, folder, parts = read_parts(locate(base, weights=False))
    unused = left_out(folder)
    classes = {part: _class(*where) for part, where in parts.items() if part not in unused}
    networks = {part: _without_weights(cls, folder / part, dtype)
                for part, cls in classes.items() if issubclass(cls, torch.nn.Module)}  # fmt: skip
    with _silent():
        pipeline = getattr(diffusers, name).from_pretrained(
            folder, local_files_only=True, **networks, **unused
        )
    return FAMILIES[name].wrap(pipeline), networks


@contextmanager
def _silent() -> Iterator[None]:
    """Without diffusers' bar of loaded parts, for nothing heavy is loaded here, and without its
    warning of a text encoder that is its own (Kolors')."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _class(library: str, name: str) -> Any:
    module = import_module(KOLORS if library == "kolors" else library)
    if not hasattr(module, name):
        raise UserError(
            f"this version of {library} has no {name}, which the base names: upgrade it."
        )
    return getattr(module, name)


def _without_weights(cls: Any, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            if hasattr(cls, "from_config"):  # diffusers'
                return cls.from_config(cls.load_config(folder))
            return cls(cls.config_class.from_pretrained(folder))
    finally:
        torch.set_default_dtype(before)
