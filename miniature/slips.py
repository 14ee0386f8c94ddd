"""Labels without fault in, labels as people make them out: regions missed, sound spots painted.

Legend: b batch, h w pixels.
"""

import hashlib

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from core.contracts import ArtifactMap, Images
from core.heatmap import Map
from core.images import to_uint8
from core.seeds import generator
from miniature.blobs import JOIN, blob_labels

HALF = 0.5
MISSED, INVENTED = 151, 152
"""What a draw is for; see `core.seeds`."""
RADII = (3, 5)
"""Least and largest radius, in pixels, of a spot that is none: as small flaws are painted."""
APART = 2 * JOIN + 2
"""Pixels between such a spot and the label: the two are never one region."""


def slipped(
    images: Images, maps: ArtifactMap, missed: float, invented: float, seed: int
) -> ArtifactMap:
    """Each region is left out by chance `missed`; by chance `invented` an image gets one more.

    A pure function of each image, its map and the seed: the batch does not matter.
    """
    numbers = [_number(levels.tobytes()) for levels in to_uint8(images)]
    maps = torch.stack(
        [without_some(m, missed, seed, n) for m, n in zip(maps, numbers, strict=True)]
    )
    return torch.stack(
        [with_spot(m, invented, seed, n) for m, n in zip(maps, numbers, strict=True)]
    )


def without_some(map: Map, share: float, seed: int, number: int) -> Map:
    """A region and its soft rim go together; others keep every value."""
    regions = blob_labels(map > HALF)[0]
    names = regions[regions > 0].unique()
    if not share or not len(names):
        return map
    draws = torch.rand(len(names), generator=generator(seed, MISSED, number))
    gone = torch.isin(regions, names[draws < share])
    return torch.where(_wider(gone, 1), 0.0, map)


def with_spot(map: Map, share: float, seed: int, number: int) -> Map:
    """A full disc where nothing is marked near; none where the label leaves no room."""
    draw = generator(seed, INVENTED, number)
    chance = float(torch.rand(1, generator=draw))
    radius = int(torch.randint(RADII[0], RADII[1] + 1, (1,), generator=draw))
    place = float(torch.rand(1, generator=draw))
    free = (~_wider(map[0] > 0, radius + APART)).nonzero()
    if chance >= share or not len(free):
        return map
    y, x = free[int(place * len(free))].tolist()
    rows, columns = (torch.arange(n) for n in map.shape[1:])
    disc = (rows[:, None] - y) ** 2 + (columns[None] - x) ** 2 <= radius**2
    return torch.where(disc, 1.0, map)


def _wider(mask: Bool[Tensor, "h w"], pixels: int) -> Bool[Tensor, "h w"]:
    return F.max_pool2d(mask[None].float(), 2 * pixels + 1, 1, pixels)[0] > 0


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1
