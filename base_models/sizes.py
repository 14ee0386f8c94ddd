"""What a base can draw, and what it draws where nothing is said; no weights are read.

Of a Hub id the configs are fetched. All raise `UserError` for configs that are missing or damaged.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from base_models import unconditional
from base_models.latents import check_places, check_sides
from base_models.load import (
    FAMILIES,
    check_base,
    config_folder,
    locate,
    pipeline_class,
    read_parts,
)
from core.errors import UserError
from core.storage import read_json

C = TypeVar("C", bound=BaseModel)

LARGE = 1024
"""Pixels on a side where no config says any."""
NETWORKS = ("transformer", "unet")
"""Folders of the network that draws; a base has one of them."""


def usual_size(base: str, height: int | None, width: int | None) -> tuple[int, int]:
    """(height, width) in pixels: those given, and in place of None the base's own.

    Stable Diffusion's, SDXL's and Kolors' networks name the latents that they learnt; FLUX's takes
    any, so its autoencoder's pixels are taken.
    """
    if height is not None and width is not None:
        return height, width
    own = own_size(locate(base, weights=False))
    return own[0] if height is None else height, own[1] if width is None else width


def checked_size(base: str, height: int | None, width: int | None) -> tuple[int, int]:
    """The same, once `check_size` has nothing against it."""
    size = usual_size(base, height, width)
    check_size(base, *size)
    return size


def of_size(config: C, size: tuple[int, int], **further: Any) -> C:
    """Settings that say the size, and whatever else was found: so a run's note holds it."""
    return config.model_copy(update={"height": size[0], "width": size[1], **further})


def own_size(path: Path) -> tuple[int, int]:
    """What the configs of a base say that it learnt: (height, width) in pixels."""
    autoencoder = FAMILIES[check_base(path, weights=False)].autoencoder
    for network in NETWORKS:
        cells = _sample_size(_config(path, network), f"{path}/{network}")
        if cells is not None:
            cell = _halvings(path, autoencoder)
            return cells[0] * cell, cells[1] * cell
    said = _sample_size(_config(path, autoencoder), f"{path}/{autoencoder}")
    return said or (LARGE, LARGE)


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
    path = config_folder(locate(base, weights=False)) / "scheduler" / "scheduler_config.json"
    said = read_json(path)
    if str(said.get("_class_name")).startswith("FlowMatch"):
        return
    known = said.get("num_train_timesteps", 1000)
    if type(known) is not int:
        raise UserError(f"{path} is damaged (num_train_timesteps): copy or download it again.")
    if steps > known:
        raise UserError(f"{base} was trained on {known} levels of noise: ask for fewer steps.")


def _halvings(path: Path, part: str | None) -> int:
    """2 for every level but the first of a network, by its config; 1 without one."""
    return unconditional.halvings({"block_out_channels": [0], **_config(path, part)})


def _sample_size(config: Mapping[str, Any], part: str) -> tuple[int, int] | None:
    said = config.get("sample_size")
    if said is None:
        return None
    sides = said if isinstance(said, list) else [said, said]
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UserError(f"{part}/config.json is damaged (sample_size): copy or download it again.")
    return sides[0], sides[1]


def _config(path: Path, part: str | None) -> dict[str, Any]:
    """A part's config.json; empty for a part that its pipeline does not name."""
    if part not in read_parts(path)[2]:
        return {}
    return read_json(config_folder(path) / str(part) / "config.json")
