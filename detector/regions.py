"""Boolean masks in; their connected regions, chosen by size and width, out.

Legend: b batch, h w pixels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

Masks = Bool[Tensor, "b h w"]


def region_numbers(masks: Masks) -> Int[Tensor, "b h w"]:
    """For every true pixel a number that its 4-connected region shares, from 1; 0 elsewhere."""
    b, h, w = masks.shape
    numbers = torch.arange(1, h * w + 1, dtype=torch.float32, device=masks.device).view(1, h, w)
    numbers = numbers * masks
    while True:
        across = F.max_pool2d(numbers, (1, 3), 1, (0, 1))
        grown = torch.maximum(across, F.max_pool2d(numbers, (3, 1), 1, (1, 0))) * masks
        if torch.equal(grown, numbers):
            return numbers.long()
        numbers = grown


def of_size(masks: Masks, least: float, most: float) -> Masks:
    """The regions of more than `least` and fewer than `most` pixels."""
    numbers = region_numbers(masks).flatten(1)
    counts = torch.zeros(len(masks), masks[0].numel() + 1, device=masks.device)
    counts.scatter_add_(1, numbers, masks.flatten(1).float())
    sizes = counts.gather(1, numbers).view_as(masks)
    return masks & (sizes > least) & (sizes < most)


def of_width(masks: Masks, radius: int) -> Masks:
    """The regions that hold at least one square of 2 `radius` + 1 pixels a side."""
    numbers = region_numbers(masks).flatten(1)
    wide = torch.zeros(len(masks), masks[0].numel() + 1, device=masks.device)
    wide.scatter_reduce_(1, numbers, eroded(masks, radius).flatten(1).float(), "amax")
    return masks & (wide.gather(1, numbers).view_as(masks) > 0)


def eroded(masks: Masks, radius: int) -> Masks:
    """Pixels whose whole square lies in the mask; there is no mask beyond the border."""
    outside = F.pad((~masks)[:, None].float(), (radius,) * 4, value=1.0)
    return F.max_pool2d(outside, 2 * radius + 1, 1)[:, 0] == 0


def dilated(masks: Masks, radius: int) -> Masks:
    """Pixels with a true one in their square."""
    return F.max_pool2d(masks[:, None].float(), 2 * radius + 1, 1, radius)[:, 0] > 0
