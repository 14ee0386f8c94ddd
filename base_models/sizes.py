"""What a base can draw, and what it draws where nothing is said; no weights are read.

Of a Hub id the configs are fetched.
"""

from pathlib import Path
from typing import Any

from base_models import unconditional
from base_models.latents import check_places, check_sides
from base_models.load import FAMILIES, check_base, config_folder, locate, pipeline_class
from core.errors import UserError
from core.storage import read_json

LARGE = 1024
"""Pixels on a side where no config says any."""
NETWORKS = ("transformer", "unet")
"""Folders of the network that draws; a base has one of them."""


def usual_size(base: str, height: int | None, width: int | None) -> tuple[int, int]:
    """(height, width) in pixels: those given, and in place of None the base's own.

    Stable Diffusion's, SDXL's and Kolors' networks name the latents that they learnt; FLUX's takes
    any, so its autoencoder's pixels are taken. Raises `UserError` for configs that are damaged.
    """
    if height is None or width is None:
        own = own_size(locate(base, weights=False))
        return height or own[0], width or own[1]
    return height, width


def checked_size(base: str, height: int | None, width: int | None) -> tuple[int, int]:
    """The same, once `check_size` has nothing against it."""
    size = usual_size(base, height, width)
    check_size(base, *size)
    return size


def own_size(path: Path) -> tuple[int, int]:
    """What the configs of a base say that it learnt: (height, width) in pixels."""
    autoencoder = FAMILIES[check_base(path, weights=False)].autoencoder
    for network in NETWORKS:
        cells = _config(path, network).get("sample_size")
        if cells is not None:
            height, width = [cells, cells] if isinstance(cells, int) else cells
            cell = _halvings(path, autoencoder)
            return height * cell, width * cell
    side = _config(path, autoencoder).get("sample_size", LARGE)
    return side, side


def usual_steps(base: str) -> int:
    """Sampler steps: 4 of FLUX.1-schnell, 28 of dev, 25 of any other family."""
    path = locate(base, weights=False)
    if pipeline_class(path) != "FluxPipeline":
        return 25
    return 28 if _config(path, "transformer").get("guidance_embeds") else 4


def check_size(base: str, height: int, width: int) -> None:
    """Raise `UserError` for damaged files, or sides that its base cannot draw."""
    path = locate(base, weights=False)
    family = FAMILIES[check_base(path, weights=Path(base).expanduser().exists())]
    grain = family.grain(_halvings(path, family.autoencoder)) * _halvings(path, family.halving)
    check_sides(height, width, grain)
    check_places(height, width, _config(path, "transformer").get("pos_embed_max_size"), grain)


def check_steps(base: str, steps: int) -> None:
    """Raise `UserError` for more steps than the base knows levels of noise; a flow's are any."""
    folder = config_folder(locate(base, weights=False))
    said = read_json(folder / "scheduler" / "scheduler_config.json")
    known = said.get("num_train_timesteps")
    flow = str(said.get("_class_name")).startswith("FlowMatch")
    if known is not None and not flow and steps > known:
        raise UserError(f"{base} was trained on {known} levels of noise: ask for fewer steps.")


def _halvings(path: Path, part: str | None) -> int:
    """2 for every level but the first of a network, by its config; 1 without one."""
    return unconditional.halvings({"block_out_channels": [0], **_config(path, part)})


def _config(path: Path, part: str | None) -> dict[str, Any]:
    """A part's config.json; empty for a part that the base lacks."""
    file = config_folder(path) / (part or "") / "config.json"
    return read_json(file) if part and file.is_file() else {}
