"""The parts of a pipeline's folder in; their networks out, each with all that its config asks for.

What a config asks for and the weights lack, diffusers would leave without memory and transformers
would draw at random; what the weights hold and no config asks for, both pass over.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging

from core.errors import UserError

KOLORS = "diffusers.pipelines.kolors"
"""Where diffusers keeps what model_index.json calls `kolors`."""


def classes(parts: Mapping[str, tuple[str, str]]) -> dict[str, type[torch.nn.Module]]:
    """Of those parts (library, class) that are networks."""
    found = {name: _class(*where) for name, where in parts.items()}
    return {name: cls for name, cls in found.items() if issubclass(cls, torch.nn.Module)}


def open_network(cls: Any, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The network of a part; `UserError` where its config and its weights disagree.

    Of transformers' networks it is only asked that nothing is missing: what their classes leave
    out on purpose (a decoder, a head) they do not always name.
    """
    ours = issubclass(cls, ModelMixin)
    try:
        network, said = cls.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **{"torch_dtype" if ours else "dtype": dtype},
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _disagree(folder, " ".join(str(error).split())[:300]) from error
    if said["missing_keys"]:
        raise _disagree(folder, f"the weights lack {_first(said['missing_keys'])}")
    if ours and said["unexpected_keys"]:
        raise _disagree(folder, f"the config has no place for {_first(said['unexpected_keys'])}")
    return network


def _first(names: Collection[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"'{min(names)}'{more}"


def _disagree(folder: Path, how: str) -> UserError:
    return UserError(
        f"{folder / 'config.json'} and the weights beside it do not belong together ({how}): copy "
        "or download both again."
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Without diffusers' bar of loaded parts, for nothing heavy is loaded meanwhile, and without
    its warning of a text encoder that is its own (Kolors')."""
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
