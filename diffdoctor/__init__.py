"""The front door: the public Python API and the `diffdoctor` command.

In: what a person asks for, on the command line (`diffdoctor COMMAND`) or in Python
(docs/python.md). Out: the program of one stage run with its frozen config, and for `diffdoctor
demo` all stages in a row. Nothing is decided here: names are looked up, and the stage is imported
only when it is called.
"""

from importlib import import_module
from typing import Any

# Public name -> the module that holds it; looked up on first use, so that the import is instant.
API = {
    "Chain": "treat.step",
    "Detector": "core.contracts",
    "DiffusionModel": "core.contracts",
    "PAUSED": "core.run",
    "UserError": "core.errors",
    "add_lora": "treat.lora",
    "draw": "treat.step",
    "freeze": "detector.segformer",
    "latent_gradient": "treat.step",
    "load_base": "base_models.load",
    "lora_parameters": "treat.lora",
    "lora_state": "treat.lora",
    "open_detector": "detector.storage",
    "overlay": "core.heatmap",
    "pixel_loss": "treat.pixel_loss",
    "read_image": "core.images",
    "replay": "treat.step",
    "run": "diffdoctor.programs",
    "sample": "base_models.sample",
    "settings": "diffdoctor.programs",
    "straight_through_clamp": "treat.pixel_loss",
    "write_image": "core.images",
}

__all__ = sorted(API)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"diffdoctor has no '{name}'; it has {', '.join(sorted(API))}")
    return getattr(import_module(API[name]), name)


def __dir__() -> list[str]:
    return __all__
