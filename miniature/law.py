"""The law of the miniature world: which 64x64 images are valid, and how to draw them at random.

An image is a category, its kinds (counts, words, shapes), a colour for each layer and a pose.
Kinds and colours are discrete; the pose is a grid with a little jitter, and everything between
the grid's ends is valid. `miniature.paint` turns a `Scenes` batch into pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

SIZE = 64
POSE = ("dx", "dy", "tilt", "sun")
"""Pixels right, pixels down, degrees clockwise, pixels of the sun's own x."""
JITTER = (1.0, 1.0, 2.0, 1.0)
"""Half-widths of the uniform jitter about the pose grid, in the units of `POSE`."""

SKY = {"blue": (0.45, 0.75, 1.0), "teal": (0.35, 0.85, 0.78), "violet": (0.60, 0.48, 0.92)}
GROUND = {"grass": (0.25, 0.58, 0.22), "asphalt": (0.42, 0.45, 0.50), "snow": (0.97, 0.98, 1.0)}
SKIN = {"pale": (0.97, 0.80, 0.66), "tan": (0.76, 0.52, 0.36), "dark": (0.42, 0.26, 0.18)}
HAIR = {"black": (0.08, 0.08, 0.10), "blond": (0.95, 0.80, 0.10), "red": (0.80, 0.22, 0.05)}
IRIS = {"blue": (0.05, 0.25, 0.85), "green": (0.05, 0.50, 0.12), "brown": (0.45, 0.18, 0.02)}
FRAME = {"red": (0.85, 0.10, 0.10), "blue": (0.10, 0.20, 0.85), "yellow": (0.98, 0.80, 0.05)}
BOARD = {"cream": (0.96, 0.94, 0.86), "yellow": (0.98, 0.86, 0.20), "orange": (0.98, 0.55, 0.15)}
LEAF = {"green": (0.02, 0.32, 0.12), "orange": (0.85, 0.38, 0.08)}
WHITE = {"white": (0.97, 0.98, 1.0)}
LIPS = {"lips": (0.75, 0.05, 0.30)}
TYRE = {"rubber": (0.10, 0.10, 0.12)}
WOOD = {"wood": (0.45, 0.25, 0.08)}
INK = {"ink": (0.08, 0.08, 0.10)}
SUN = {"sun": (1.0, 0.95, 0.15)}

LEXICON: tuple[str, ...] = (
    "STOP", "EXIT", "OPEN", "TAXI", "CAFE", "PARK", "SALE", "BOOK",
    "FISH", "TOUR", "BIKE", "MILK", "ROAD", "GOLD", "HELP", "NEWS",
)  # fmt: skip


SAID = {
    "smile": "smiling",
    "flat": "serious",
    "open": "singing",
    "narrow": "together",
    "wide": "spread",
}
"""How a prompt says a mouth or a hand's spread; every other value goes by its own name."""


@dataclass(frozen=True)
class Category:
    """One kind of picture: its discrete factors, its layers back to front, its pose grid."""

    kinds: dict[str, tuple[str, ...]]
    layers: dict[str, dict[str, tuple[float, float, float]]]
    grid: tuple[tuple[float, ...], ...]
    stated: tuple[str, ...]
    """The factors that a prompt names; all others are free, and diversity is measured on them."""

    @property
    def factors(self) -> dict[str, tuple[str, ...]]:
        """Every discrete factor and its values: kinds, then layers of more than one colour."""
        free = {name: tuple(p) for name, p in self.layers.items() if len(p) > 1}
        return self.kinds | free

    @property
    def box(self) -> Float[Tensor, "2 pose"]:
        """Lowest and highest valid pose."""
        ends = [(min(g) - j * (len(g) > 1), max(g) + j * (len(g) > 1))
                for g, j in zip(self.grid, JITTER, strict=True)]  # fmt: skip
        return torch.tensor(ends).T

    def palette(self, layer: str) -> Float[Tensor, "colours 3"]:
        return torch.tensor(list(self.layers[layer].values()))


BACK = {"sky": SKY, "ground": GROUND}
HORIZON: dict[str, tuple[str, ...]] = {"horizon": ("high", "low")}
STILL = (0.0,)

CATEGORIES: dict[str, Category] = {
    "hand": Category(
        kinds={"side": ("left", "right"), "spread": ("narrow", "wide")} | HORIZON,
        layers=BACK | {"skin": SKIN},
        grid=((-8.0, 0.0, 8.0), (-3.0, 3.0), (-8.0, 8.0), STILL),
        stated=("side", "spread", "skin", "ground"),
    ),
    "face": Category(
        kinds={
            "cut": ("short", "long"),
            "gaze": ("left", "ahead", "right"),
            "mouth": ("smile", "flat", "open"),
        }
        | HORIZON,
        layers=BACK | {"hair": HAIR, "skin": SKIN, "eye": WHITE, "iris": IRIS, "lips": LIPS},
        grid=((-8.0, 0.0, 8.0), (-3.0, 3.0), STILL, STILL),
        stated=("mouth", "gaze", "skin", "cut", "hair", "iris", "ground"),
    ),
    "bicycle": Category(
        kinds={"facing": ("left", "right"), "phase": ("upright", "diagonal")} | HORIZON,
        layers=BACK | {"tyre": TYRE, "frame": FRAME},
        grid=((-4.0, 0.0, 4.0), (-10.0, -4.0, 2.0), STILL, STILL),
        stated=("facing", "phase", "frame", "ground"),
    ),
    "sign": Category(
        kinds={"word": LEXICON} | HORIZON,
        layers=BACK | {"pole": WOOD, "board": BOARD, "ink": INK},
        grid=((-8.0, 0.0, 8.0), (-4.0, 4.0), STILL, STILL),
        stated=("word", "board", "ground"),
    ),
    "scenery": Category(
        kinds={"tree": ("round", "pine")} | HORIZON,
        layers=BACK | {"sun": SUN, "trunk": WOOD, "leaf": LEAF},
        grid=((-16.0, 0.0, 16.0), (-2.0, 2.0), STILL, (-20.0, 0.0, 20.0)),
        stated=("tree", "leaf", "ground"),
    ),
}


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes of one category: factor indices, poses and exact layer colours."""

    category: str
    factors: dict[str, Int[Tensor, " b"]]
    pose: Float[Tensor, "b pose"]
    tint: Float[Tensor, "b layers 3"]
    """Added to the palette colours, layer by layer; zero on the law."""

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, index: Tensor | slice | list[int]) -> "Scenes":
        factors = {name: values[index] for name, values in self.factors.items()}
        return replace(self, factors=factors, pose=self.pose[index], tint=self.tint[index])

    def to(self, device: torch.device | str) -> "Scenes":
        factors = {name: values.to(device) for name, values in self.factors.items()}
        pose, tint = self.pose.to(device), self.tint.to(device)
        return replace(self, factors=factors, pose=pose, tint=tint)

    def value(self, i: int, factor: str) -> str:
        """The name of one factor's value in scene i."""
        return CATEGORIES[self.category].factors[factor][int(self.factors[factor][i])]

    def colours(self) -> Float[Tensor, "b layers 3"]:
        """The RGB of every layer, back to front."""
        category = CATEGORIES[self.category]
        zero = torch.zeros(len(self), dtype=torch.long)
        rows = [category.palette(layer)[self.factors.get(layer, zero)] for layer in category.layers]
        return torch.stack(rows, dim=1) + self.tint


def scenes(category: str, factors: dict[str, Tensor], pose: Tensor) -> Scenes:
    """A batch without tint."""
    tint = torch.zeros(len(pose), len(CATEGORIES[category].layers), 3)
    return Scenes(category, factors, pose, tint)


def draw(category: str, n: int, generator: torch.Generator, jitter: float = 1.0) -> Scenes:
    """n random valid scenes; `jitter` 0 keeps to the pose grid, 1 is the law's own."""
    law = CATEGORIES[category]
    factors = {
        name: torch.randint(len(values), (n,), generator=generator)
        for name, values in law.factors.items()
    }
    columns = []
    for grid, half in zip(law.grid, JITTER, strict=True):
        base = torch.tensor(grid)[torch.randint(len(grid), (n,), generator=generator)]
        noise = (torch.rand(n, generator=generator) * 2 - 1) * half * jitter * (len(grid) > 1)
        columns.append(base + noise)
    return scenes(category, factors, torch.stack(columns, dim=1))


def draw_off_grid(category: str, n: int, generator: torch.Generator, tint: float) -> Scenes:
    """n valid scenes anywhere in the pose box, each layer's colour off by at most `tint`."""
    drawn = draw(category, n, generator, jitter=0)
    low, high = CATEGORIES[category].box
    pose = low + (high - low) * torch.rand(n, len(POSE), generator=generator)
    shift = (torch.rand(drawn.tint.shape, generator=generator) * 2 - 1) * tint
    return replace(drawn, pose=pose, tint=shift)


def prompt(category: str, values: dict[str, str]) -> str:
    """The sentence that states a scene's stated factors."""
    v = {name: SAID.get(value, value.lower()) for name, value in values.items()}
    match category:
        case "hand":
            head = f"a {v['side']} hand, fingers {v['spread']}, {v['skin']} skin"
        case "face":
            hair = f"{v['cut']} {v['hair']} hair"
            head = f"a {v['mouth']} face looking {v['gaze']}"
            head += f", {v['skin']} skin, {hair}, {v['iris']} eyes"
        case "bicycle":
            head = f"a {v['frame']} bicycle facing {v['facing']}, {v['phase']} spokes"
        case "sign":
            head = f"a {v['board']} sign saying {v['word']}"
        case _:
            head = f"scenery, a {v['leaf']} {v['tree']} tree"
    return f"{head}, over {v['ground']}".replace("a orange", "an orange")


def prompts(batch: Scenes) -> list[str]:
    """The prompt of every scene."""
    stated = CATEGORIES[batch.category].stated
    return [
        prompt(batch.category, {name: batch.value(i, name) for name in stated})
        for i in range(len(batch))
    ]


@cache
def all_prompts() -> dict[str, tuple[str, dict[str, str]]]:
    """Every prompt of the world: prompt -> (category, stated factors)."""
    table = {}
    for name, category in CATEGORIES.items():
        values = [category.factors[factor] for factor in category.stated]
        for row in product(*values):
            stated = dict(zip(category.stated, row, strict=True))
            table[prompt(name, stated)] = (name, stated)
    return table


def mixed(n: int, generator: torch.Generator, categories: Sequence[str]) -> dict[str, Scenes]:
    """About n scenes shared evenly between categories."""
    share = -(-n // len(categories))
    return {name: draw(name, share, generator) for name in categories}
