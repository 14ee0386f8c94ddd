"""Scenes in, anti-aliased pixels out: each layer is the coverage of a few signed distances.

Canonical coordinates are pixels of the 64x64 frame, y down. Everything is differentiable in the
pose. Legend: b batch, h w pixels, l layers back to front. Factors beyond the law's (`missing`,
`extra`, `gap`, ...) draw the faults of `miniature.faults`; absent, they draw none.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from miniature.law import CATEGORIES, LEXICON, SIZE, Scenes

Plane = Float[Tensor, "b h w"]
HORIZON_Y = (42.0, 50.0)
FONT = {  # 3x5 cells a letter, rows top to bottom, most significant bit left
    "A": (2, 5, 7, 5, 5), "B": (6, 5, 6, 5, 6), "C": (3, 4, 4, 4, 3), "D": (6, 5, 5, 5, 6),
    "E": (7, 4, 6, 4, 7), "F": (7, 4, 6, 4, 4), "G": (3, 4, 5, 5, 3), "H": (5, 5, 7, 5, 5),
    "I": (7, 2, 2, 2, 7), "K": (5, 5, 6, 5, 5), "L": (4, 4, 4, 4, 7), "M": (5, 7, 7, 5, 5),
    "N": (6, 5, 5, 5, 5), "O": (7, 5, 5, 5, 7), "P": (7, 5, 7, 4, 4), "R": (7, 5, 6, 5, 5),
    "S": (7, 4, 7, 1, 7), "T": (7, 2, 2, 2, 2), "U": (5, 5, 5, 5, 7), "W": (5, 5, 7, 7, 5),
    "X": (5, 5, 2, 5, 5),
}  # fmt: skip
ALPHABET = "".join(FONT)


def cover(distance: Plane) -> Plane:
    """Share of a pixel inside a shape whose edge is `distance` pixels away (negative inside)."""
    return (0.5 - distance).clamp(0, 1)


def capsule(x: Plane, y: Plane, ax, ay, bx, by, radius) -> Plane:
    """Distance to a segment from a to b, thickened by `radius`."""
    ux, uy = bx - ax, by - ay
    t = ((x - ax) * ux + (y - ay) * uy) / (ux * ux + uy * uy)
    t = t.clamp(0, 1)
    return torch.sqrt((x - ax - t * ux) ** 2 + (y - ay - t * uy) ** 2 + 1e-6) - radius


def ellipse(x: Plane, y: Plane, cx, cy, rx, ry) -> Plane:
    """First-order distance to an ellipse: f / |grad f|."""
    dx, dy = (x - cx) / rx, (y - cy) / ry
    f = dx * dx + dy * dy
    return (f - 1) / (2 * torch.sqrt((dx / rx) ** 2 + (dy / ry) ** 2 + 1e-6))


def rectangle(x: Plane, y: Plane, cx, cy, half_w, half_h, radius=0.0) -> Plane:
    """Distance to a rounded rectangle."""
    qx, qy = (x - cx).abs() - half_w + radius, (y - cy).abs() - half_h + radius
    outside = torch.sqrt(qx.clamp(min=0) ** 2 + qy.clamp(min=0) ** 2 + 1e-6)
    return outside + torch.maximum(qx, qy).clamp(max=0) - radius


def union(*distances: Plane) -> Plane:
    return torch.stack(distances).amin(dim=0)


def choose(index: Tensor, values) -> Float[Tensor, "b 1 1"]:
    """One constant per scene, picked by a factor, shaped to broadcast over pixels."""
    return torch.tensor(values, dtype=torch.float32)[index][:, None, None]


def hand(x: Plane, y: Plane, scene: Scenes) -> list[Plane]:
    """Palm, wrist, thumb and four fingers of fixed order, all of one colour."""
    f = scene.factors
    b = len(scene)
    x = torch.where(f["side"][:, None, None] == 0, x, SIZE - x)
    missing = f.get("missing", torch.full((b,), -1))
    extra = f.get("extra", torch.full((b,), -1))
    spread = choose(f["spread"], (3.0, 9.5)) * math.pi / 180
    shapes = [
        rectangle(x, y, 32.0, 42.0, 13.5, 8.5, 5.0),
        rectangle(x, y, 32.0, 58.0, 6.5, 14.0),
        capsule(x, y, 39.0, 45.0, 51.0, 36.0, 3.0),
    ]
    # Index finger beside the thumb; lengths in pixels from the knuckle.
    for i, (slot, length) in enumerate(((1.5, 16.0), (0.5, 19.0), (-0.5, 17.0), (-1.5, 13.0))):
        shapes.append(finger(x, y, slot, length, spread) + gone(missing == i))
    for i, (slot, length) in enumerate(((2.5, 13.0), (-2.5, 13.0))):
        shapes.append(finger(x, y, slot, length, spread) + gone(extra != i))
    return [cover(union(*shapes))]


def finger(x: Plane, y: Plane, slot: float, length: float, spread: Tensor) -> Plane:
    """The finger `slot` pitches right of the palm's middle, fanned by `spread` radians a slot."""
    angle = slot * spread
    ax, ay = 32.0 + slot * 7.4, 38.0 + abs(slot) * 0.8
    bx, by = ax + torch.sin(angle) * length, ay - torch.cos(angle) * length
    return capsule(x, y, ax, ay, bx, by, 2.5)


def gone(which: Tensor) -> Float[Tensor, "b 1 1"]:
    """A distance that hides a shape where `which` is true."""
    return which.float()[:, None, None] * 1e3


def face(x: Plane, y: Plane, scene: Scenes) -> list[Plane]:
    """Hair, head with neck, two equal eyes of one gaze, a mouth."""
    f = scene.factors
    long = f["cut"][:, None, None] == 1
    cap = ellipse(x, y, 32.0, 29.0, 17.0, 17.5)
    locks = union(cap, rectangle(x, y, 32.0, 38.0, 17.0, 12.0, 4.0))
    hair = torch.where(long, locks, torch.maximum(cap, y - 33.0))
    head = union(
        ellipse(x, y, 32.0, 35.0, 13.5, 16.0),
        rectangle(x, y, 32.0, 62.0, 5.0, 16.0),
    )
    gaze = choose(f["gaze"], (-2.6, 0.0, 2.6))
    eyes = union(*(ellipse(x, y, cx, 33.0, 5.4, 4.0) for cx in (25.2, 38.8)))
    irises = union(
        ellipse(x, y, 25.2 + gaze, 33.0, 2.7, 2.7),
        ellipse(x, y, 38.8 + gaze, 33.0, 2.7, 2.7),
    )
    return [cover(hair), cover(head), cover(eyes), cover(irises), cover(mouth(x, y, f["mouth"]))]


def mouth(x: Plane, y: Plane, kind: Tensor) -> Plane:
    """Smile, flat or open, by index."""
    smile = union(
        capsule(x, y, 25.5, 40.5, 28.5, 45.5, 1.6),
        capsule(x, y, 28.5, 45.5, 35.5, 45.5, 1.6),
        capsule(x, y, 35.5, 45.5, 38.5, 40.5, 1.6),
    )
    flat = capsule(x, y, 26.5, 42.5, 37.5, 42.5, 1.6)
    wide = ellipse(x, y, 32.0, 43.8, 5.0, 4.4)
    shapes = torch.stack((smile, flat, wide))
    return shapes.gather(0, kind[None, :, None, None].expand(1, *x.shape))[0]


def bicycle(x: Plane, y: Plane, scene: Scenes) -> list[Plane]:
    """Two equal closed rings with a cross of spokes of one phase, and a closed frame."""
    f = scene.factors
    x = torch.where(f["facing"][:, None, None] == 1, x, SIZE - x)
    phase = choose(f["phase"], (0.0, 45.0)) * math.pi / 180
    gap = choose(f["gap"], (0.0, 1.0)) if "gap" in f else 0.0
    rear = wheel(x, y, 17.0, phase)
    front = wheel(x, y, 47.0, phase) + torch.relu(12.0 - (x - 40.0) - (54.0 - y)) * gap * 1e3
    tubes = (
        (17.0, 44.0, 30.0, 44.0), (30.0, 44.0, 41.5, 30.0), (41.5, 30.0, 25.5, 30.0),
        (30.0, 44.0, 25.0, 27.0), (17.0, 44.0, 25.5, 30.0), (47.0, 44.0, 40.5, 26.5),
        (22.0, 26.0, 28.5, 26.0), (40.5, 26.0, 44.5, 25.0),
    )  # fmt: skip
    frame = union(*(capsule(x, y, *tube, 1.6) for tube in tubes))
    return [cover(union(rear, front)), cover(frame)]


def wheel(x: Plane, y: Plane, cx: float, phase: Tensor) -> Plane:
    """A ring of radius 9.5 and stroke 3.6 with two spokes through its hub at y 44."""
    ring = (torch.sqrt((x - cx) ** 2 + (y - 44.0) ** 2 + 1e-6) - 9.5).abs() - 1.8
    spokes = []
    for turn in (0.0, math.pi / 2):
        c, s = torch.cos(phase + turn) * 9.0, torch.sin(phase + turn) * 9.0
        spokes.append(capsule(x, y, cx - c, 44.0 - s, cx + c, 44.0 + s, 1.3))
    return union(ring, *spokes)


def sign(x: Plane, y: Plane, scene: Scenes) -> list[Plane]:
    """A board on a pole, a word of the lexicon in letters of 6x10 pixels."""
    f = scene.factors
    pole = rectangle(x, y, 32.0, 50.0, 2.5, 24.0)
    board = rectangle(x, y, 32.0, 22.0, 19.0, 9.0, 2.0)
    letters = f["letters"] if "letters" in f else spelling()[f["word"]]
    bitmap = font()[letters].permute(0, 2, 1, 3)  # (b, rows, letters, columns)
    bitmap = torch.nn.functional.pad(bitmap, (0, 1)).flatten(2)[:, :, :-1]
    left = 17.0 + torch.arange(bitmap.shape[2]) * 2.0
    top = 17.0 + torch.arange(5) * 2.0
    across = overlap(x[:, 0, :, None], left)  # (b, w, columns)
    down = overlap(y[:, :, 0, None], top)  # (b, h, rows)
    ink = torch.einsum("bhr,brc,bwc->bhw", down, bitmap, across).clamp(0, 1)
    return [cover(pole), cover(board), ink]


def overlap(centre: Tensor, start: Tensor) -> Tensor:
    """Length shared by the unit pixel about `centre` and the cell [start, start + 2]."""
    return (torch.minimum(centre + 0.5, start + 2) - torch.maximum(centre - 0.5, start)).clamp(0, 1)


def spelling() -> Tensor:
    """(words, 4) indices into `ALPHABET`."""
    return torch.tensor([[ALPHABET.index(c) for c in word] for word in LEXICON])


def font() -> Float[Tensor, "letters rows columns"]:
    bits = [[[(row >> k) & 1 for k in (2, 1, 0)] for row in rows] for rows in FONT.values()]
    return torch.tensor(bits, dtype=torch.float32)


def scenery(x: Plane, y: Plane, scene: Scenes) -> list[Plane]:
    """One sun, one tree. The sun keeps its own x and does not move with the tree."""
    px, py = pixel_grid(len(scene))
    sun_x = 32.0 + scene.pose[:, 3][:, None, None]
    sun = ellipse(px, py, sun_x, 11.0, 6.0, 6.0)
    trunk = rectangle(x, y, 32.0, 48.0, 2.5, 9.0)
    round_crown = ellipse(x, y, 32.0, 34.0, 11.0, 10.0)
    slope = ((x - 32.0).abs() * 22.0 - (y - 22.0) * 11.0) / math.hypot(22.0, 11.0)
    pine = torch.maximum(slope, y - 44.0)
    crown = torch.where(scene.factors["tree"][:, None, None] == 0, round_crown, pine)
    return [cover(sun), cover(trunk), cover(crown)]


OBJECTS = {"hand": hand, "face": face, "bicycle": bicycle, "sign": sign, "scenery": scenery}
PIVOT = (32.0, 52.0)
"""The point about which a tilt turns, in pixels."""


def pixel_grid(b: int) -> tuple[Plane, Plane]:
    """x and y of every pixel's centre."""
    centres = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return x.expand(b, -1, -1), y.expand(b, -1, -1)


def coverages(scene: Scenes) -> Float[Tensor, "b l h w"]:
    """How much of each pixel every layer covers, before anything in front hides it."""
    x, y = pixel_grid(len(scene))
    dx, dy, tilt = (scene.pose[:, k][:, None, None] for k in range(3))
    ground = cover(choose(scene.factors["horizon"], HORIZON_Y) - y)
    c, s = torch.cos(tilt * math.pi / 180), torch.sin(tilt * math.pi / 180)
    u, v = x - PIVOT[0] - dx, y - PIVOT[1] - dy
    objects = OBJECTS[scene.category](PIVOT[0] + c * u + s * v, PIVOT[1] - s * u + c * v, scene)
    return torch.stack([torch.ones_like(x), ground, *objects], dim=1)


def visible(cover_: Float[Tensor, "b l h w"]) -> Float[Tensor, "b l h w"]:
    """What is seen of every layer: coverage not hidden by the layers in front; sums to 1."""
    behind = torch.cumprod((1 - cover_).flip(1), dim=1).flip(1)
    ahead = torch.cat([behind[:, 1:], torch.ones_like(behind[:, :1])], dim=1)
    return cover_ * ahead


def render(scene: Scenes) -> Float[Tensor, "b 3 h w"]:
    """The images of a batch of scenes, RGB in [0, 1] (tints may leave the range)."""
    return torch.einsum("blhw,blc->bchw", visible(coverages(scene)), scene.colours())


def layer_names(category: str) -> list[str]:
    return list(CATEGORIES[category].layers)
