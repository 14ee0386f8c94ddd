"""Artifact maps in, pictures that people can read out; and maps as 8-bit gray PNG, both ways.

Legend: b batch, h w pixels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from core.contracts import ArtifactMap, Images
from core.image_files import check_png, encode_png, gray, open_image
from core.images import Picture
from core.storage import write_atomic

Map = Float[Tensor, "1 h w"]

# Black, purple, red, orange, pale yellow: brightness rises evenly, so that the order of values
# survives gray print and colour blindness.
COLOURS = (
    (0.0, 0.0, 0.02),
    (0.34, 0.06, 0.43),
    (0.73, 0.21, 0.33),
    (0.98, 0.56, 0.04),
    (1, 1, 0.64),
)
CONTOUR = (0.0, 1.0, 1.0)
OPACITY = 0.75
"""How much of the picture the surest artifact hides."""


def overlay(images: Images, maps: ArtifactMap, threshold: float = 0.5) -> Images:
    """Images with the map laid over them and a cyan line around what reaches `threshold`.

    Where the map is 0 the image is unchanged.
    """
    maps = maps.detach().float().clamp(0, 1).to(images.device)
    opacity = OPACITY * maps
    mixed = images.detach() * (1 - opacity) + colourise(maps) * opacity
    line = torch.tensor(CONTOUR, device=images.device).view(1, 3, 1, 1)
    return torch.where(contour(maps, threshold), line, mixed)


def colourise(maps: ArtifactMap) -> Images:
    """Each value as its colour, linear between the anchors of `COLOURS`."""
    table = torch.tensor(COLOURS, device=maps.device)
    place = maps.clamp(0, 1) * (len(COLOURS) - 1)
    low = place.floor().long().clamp(max=len(COLOURS) - 2)
    share = (place - low).movedim(1, -1)
    low = low.squeeze(1)
    return (table[low] * (1 - share) + table[low + 1] * share).movedim(-1, 1)


def contour(maps: ArtifactMap, threshold: float) -> Tensor:
    """Bool (b, 1, h, w): pixels at or above the threshold with a neighbour (of 4) below it.

    The border of the image is no contour.
    """
    below = (maps < threshold).float()
    near = F.pad(below, (1, 1, 1, 1))
    touching = (
        near[..., :-2, 1:-1] + near[..., 2:, 1:-1] + near[..., 1:-1, :-2] + near[..., 1:-1, 2:]
    )
    return (below == 0) & (touching > 0)


def colour_bar(height: int) -> Picture:
    """The legend: 1 at the top, 0 at the bottom, a tenth as wide as high (at least 8 pixels)."""
    values = torch.linspace(1, 0, height).view(1, 1, height, 1)
    return colourise(values.expand(1, 1, height, max(8, height // 10)))[0]


def read_map(path: Path) -> Map:
    """A gray picture file as values in [0, 1]; colours count by their brightness.

    Raises `UserError` as `core.images.read_image` does.
    """
    return torch.from_numpy(gray(open_image(Path(path))))[None].float().div_(255)


def write_map(path: Path, map: Map) -> None:
    """Write values (clamped to [0, 1]) as an 8-bit gray PNG; whole or not at all.

    Raises `UserError` for a name that promises another format.
    """
    check_png(path)
    levels = map.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    write_atomic(Path(path), encode_png(levels[0].cpu().numpy()))
