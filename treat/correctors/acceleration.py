"""Score-acceleration curves: a sampling's dynamics and a map in; curves of artifact and sound, and
their drawing with ASCED's three phases, out.

Legend: b batch, h w pixels, d differences between neighbouring steps, T sampling steps.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from base_models.trajectory import Trajectory
from core.contracts import ArtifactMap
from detector.score_dynamics import Window, dynamics
from treat.figures import resampled

RED, BLUE, GREY = "#c8322b", "#2b62c8", "#808890"
PHASES = ("Profiling", "Mutation", "Refinement")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 260, 60, 46, 40
"""Of the drawing and its margins, in its own units."""


def region_curves(
    trajectory: Trajectory, maps: ArtifactMap, threshold: float = 0.5
) -> list[dict[str, list[float]]]:
    """For every image |Delta x0-hat| over its `artifact` and its `sound` region, d values each.

    As shares of the image's own mean of the step, for the changes themselves shrink with the noise.
    A region that an image does not have is left out.
    """
    changes = dynamics(trajectory, "x0")  # the weighted scores' are the noise's
    regions = F.interpolate(maps.to(changes), size=changes.shape[-2:], mode="area") >= threshold
    shares = changes / changes.mean(dim=(2, 3), keepdim=True).clamp(min=1e-12)
    found = []
    for b in range(changes.shape[1]):
        flawed, own = regions[b, 0], {}
        for name, region in (("artifact", flawed), ("sound", ~flawed)):
            if region.any():
                own[name] = shares[:, b][:, region].mean(dim=1).tolist()
        found.append(own)
    return found


def mean_curves(curves: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    """Means over the images that have both regions: `speed` and its change, `acceleration`.

    `interval`: of the acceleration, 95 % by a bootstrap over the images.
    """
    both = [one for one in curves if "artifact" in one and "sound" in one]
    if not both:
        return {"images": 0}
    found: dict[str, Any] = {"images": len(both)}
    for name in ("artifact", "sound"):
        speed = np.array([one[name] for one in both])
        change = np.diff(speed, axis=1)
        ends = np.quantile(resampled(change, 0), [0.025, 0.975], axis=0)
        found[name] = {
            "speed": speed.mean(axis=0).tolist(),
            "acceleration": change.mean(axis=0).tolist(),
            "interval": ends.tolist(),
        }
    return found


def drawing(figures: dict[str, Any], window: Window, steps: int) -> str:
    """Acceleration over the steps, artifact against sound, with its intervals, as an SVG of its
    own; "" without any.

    A value stands at the step that it was read at. The phases are parted at T_d and T_c.
    """
    if not figures["images"]:
        return ""
    series = {name: figures[name]["acceleration"] for name in ("artifact", "sound")}
    bands = {name: figures[name]["interval"] for name in series}
    values = [v for ends in bands.values() for row in ends for v in row]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + step / (steps - 1) * (WIDTH - LEFT - 12)
        return x, TOP + (high - value) / span * (HEIGHT - TOP - BOTTOM)

    body = [_phases(window, steps, at(0, 0)[0], at(steps - 1, 0)[0], lambda s: at(s, 0)[0])]
    for (name, row), colour in zip(series.items(), (RED, BLUE), strict=True):
        low_end, high_end = ([at(i + 2, v) for i, v in enumerate(ends)] for ends in bands[name])
        body.append(f'<polygon points="{_points([*low_end, *reversed(high_end)])}" '
                    f'style="fill:{colour}" fill-opacity="0.2"/>')  # fmt: skip
        points = _points([at(i + 2, v) for i, v in enumerate(row)])
        body.append(f'<polyline points="{points}" fill="none" style="stroke:{colour}" '
                    f'stroke-width="2"><title>{name}</title></polyline>')  # fmt: skip
    body += [
        _text(LEFT, 16, f"score acceleration, mean of {figures['images']} images", "start"),
        _text(WIDTH - 100, 16, "artifact", "end", RED),
        _text(WIDTH - 12, 16, "sound", "end", BLUE),
        _text(LEFT - 6, TOP + 4, f"{high:+.2f}", "end"),
        _text(LEFT - 6, HEIGHT - BOTTOM + 4, f"{low:+.2f}", "end"),
        _text(LEFT, HEIGHT - 8, "step 0", "start"),
        _text(WIDTH - 12, HEIGHT - 8, f"step {steps - 1}", "end"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="score acceleration of artifact and sound regions">{"".join(body)}</svg>'
    )


def _phases(window: Window, steps: int, first: float, last: float, place: Any) -> str:
    """Bounds at T_d and T_c, and the names between them."""
    t_d, t_c = steps - round(window.t_d * steps), window.correction(steps)
    edges = [first, place(t_d), place(t_c), last]
    lines = [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{HEIGHT - BOTTOM}" '
        f'style="stroke:{GREY}" stroke-dasharray="3 3"/>'
        for x in edges[1:3]
    ]
    names = [
        _text((a + b) / 2, TOP - 12, name, "middle")
        for name, a, b in zip(PHASES, edges[:-1], edges[1:], strict=True)
        if b - a > 40
    ]
    return "".join([*lines, *names])


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _text(x: float, y: float, said: str, anchor: str, colour: str = GREY) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'style="fill:{colour};font:12px sans-serif">{escape(said)}</text>'
    )


def shown_mask(mask: Tensor | None, like: Float[Tensor, "b 3 h w"]) -> ArtifactMap:
    """What a corrector changed, at the size of the images; zeros where none looked."""
    if mask is None:
        return torch.zeros(len(like), 1, *like.shape[-2:])
    return F.interpolate(mask.float().cpu(), size=like.shape[-2:], mode="nearest")
