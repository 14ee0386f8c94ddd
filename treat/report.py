"""Figures, pictures and curves in, one self-contained HTML page out.

The page names no outside address: pictures are base64 PNGs, curves inline SVG, the few lines of
script stand in the page, and its own policy forbids everything else.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from core.heatmap import overlay
from core.image_files import encode_png
from core.images import to_uint8
from treat.report_page import FOOT, HEAD, SCRIPT, STYLE

MAX_SIDE = 512
"""Pixels: larger pictures are shown smaller, or twelve pairs would make a page of 100 MB."""
FIGURES = {
    "artifact_frequency": ("Images with artifacts", 100.0, "%"),
    "artifact_area": ("Artifact area", 100.0, "%"),
    "artifact_score": ("Mean of the judge's map", 1.0, ""),
    "attribute_match": ("Attributes found", 100.0, "%"),
    "sharpness": ("Sharpness", 1.0, ""),
    "change_outside": ("Change outside the base's artifacts", 1.0, ""),
}
"""Figure -> (title, factor for display, unit); others follow under their own names."""
SEEN = {"score": "mean of its map"}
"""What a figure is called where a detector other than the judge gives it."""


Measured = tuple[float | None, Sequence[float] | None]
"""A figure and its interval."""


class Pair(NamedTuple):
    """One prompt and seed: the arms' images (3, h, w) and the judge's maps (1, h, w)."""

    prompt: str
    seed: int
    images: Mapping[str, Tensor]
    maps: Mapping[str, Tensor]


class Curve(NamedTuple):
    """One figure over the steps of a treatment, with the step that was kept; or over `axis`."""

    title: str
    points: Sequence[tuple[float, float]]
    kept: int | None = None
    axis: str = "step"


def render(
    title: str,
    note: str,
    summary: Mapping[str, Any],
    pairs: Sequence[Pair],
    curves: Sequence[Curve] = (),
    further: Sequence[str] = (),
) -> str:
    """The page. `summary` holds the arms by name, `differences` and how intervals were made;
    `further` is HTML of our own that stands before the pictures."""
    arms = list(pairs[0].images) if pairs else []
    data = json.dumps([_pair_data(pair) for pair in pairs]).replace("<", "\\u003c")
    body = [
        f"<h1>{escape(title)}</h1><p>{escape(note)}</p>",
        "<h2>Figures</h2>",
        table(summary),
        f"<p class=small>{escape(str(summary.get('method', '')))}</p>",
        *differences(summary),
        *group_tables(summary["arms"]),
    ]
    if curves:
        body += ["<h2>Curves</h2>", '<div class="curves">', *map(svg, curves), "</div>"]
    body += further
    if pairs:
        body += ["<h2>Before and after</h2>", _controls(arms), '<div id="gallery"></div>']
    script = f"<script>const PAIRS={data};{SCRIPT}</script>" if pairs else ""
    return HEAD.format(title=escape(title), style=STYLE) + "\n".join(body) + script + FOOT


def table(summary: Mapping[str, Any]) -> str:
    """A row for every figure, a column for every arm, intervals beside the values."""
    arms = summary["arms"]
    names = _ordered({name for arm in arms.values() for name in arm.get("interval", {})})
    rows = []
    for name in names:
        found = [(arm.get(name), arm.get("interval", {}).get(name)) for arm in arms.values()]
        rows.append(_row(name, found))
    rows.append(
        _plain_row("Entropy of the unstated, bits", [a.get("entropy") for a in arms.values()])
    )
    rows.append(_plain_row("Images", [arm["n"] for arm in arms.values()]))
    return _table(arms, rows)


def differences(summary: Mapping[str, Any]) -> list[str]:
    """The paired differences: a row for every figure, a column for every pair of arms."""
    pairs = summary.get("differences", {})
    if not pairs:
        return []
    names = _ordered({name for pair in pairs.values() for name in pair})
    rows = []
    for name in names:
        changes = [pair.get(name, {}) for pair in pairs.values()]
        found = [(change.get("difference"), change.get("interval")) for change in changes]
        rows.append(_row(name, found, sign=True))
    return [
        "<h3>Paired differences</h3>",
        _table(pairs, rows),
        "<p class=small>Coloured: the interval is clear of zero.</p>",
    ]


def _table(columns: Iterable[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    return (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def group_tables(arms: Mapping[str, Any]) -> list[str]:
    """For every grouping of the images (by category): frequency and area of each group and arm."""
    groupings = [name for name in next(iter(arms.values())) if name.startswith("by_")]
    return [_group_table(name, {arm: found[name] for arm, found in arms.items()})
            for name in groupings]  # fmt: skip


def _group_table(name: str, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Where no prompt says what an image is, the arms' groups are of different images."""
    rows = []
    for label in dict.fromkeys(label for groups in arms.values() for label in groups):
        found = [groups.get(label) for groups in arms.values()]
        sizes = {0 if group is None else group["n"] for group in found}
        size = f" <small>n = {sizes.pop()}</small>" if len(sizes) == 1 else ""
        cells = "".join(f"<td>{_group_cell(group, not size)}</td>" for group in found)
        rows.append(f"<tr><th>{escape(label)}{size}</th>{cells}</tr>")
    title = name.replace("_", " ").capitalize()
    return f"<h3>{escape(title)}: images with artifacts, and area</h3>{_table(arms, rows)}"


def _group_cell(group: Mapping[str, float] | None, sized: bool) -> str:
    if group is None:
        return "none"
    size = f", n = {group['n']:.0f}" if sized else ""
    return f"{group['artifact_frequency']:.1%} <small>{group['artifact_area']:.2%}{size}</small>"


def svg(curve: Curve, width: int = 300, height: int = 160) -> str:
    """One figure over the steps as inline SVG with its own axis, the kept step marked."""
    points = [(x, y) for x, y in curve.points if y == y]
    if len(points) < 2:
        return ""
    left, right, top, bottom = 46, 8, 26, 24
    xs, ys = [x for x, _ in points], [y for _, y in points]
    span_x = (max(xs) - min(xs)) or 1.0
    low, high = min(ys), max(ys)
    span_y = (high - low) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (x - min(xs)) / span_x * (width - left - right)
        return across, top + (high - y) / span_y * (height - top - bottom)

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    kept = ""
    if curve.kept is not None and min(xs) <= curve.kept <= max(xs):
        x = at(curve.kept, low)[0]
        kept = (
            f'<line class="kept" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>'
            f"<title>kept: step {curve.kept}</title>"
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(curve.title)}">'
        f'<text x="4" y="16" class="name">{escape(curve.title)}</text>'
        f'<text x="{left - 6}" y="{top + 4}" class="axis end">{_short(high)}</text>'
        f'<text x="{left - 6}" y="{height - bottom + 4}" class="axis end">{_short(low)}</text>'
        f'<text x="{left}" y="{height - 6}" class="axis">{_short(min(xs))}</text>'
        f'<text x="{width - right}" y="{height - 6}" class="axis end">'
        f"{curve.axis} {_short(max(xs))}</text>"
        f'<line class="base" x1="{left}" x2="{width - right}" y1="{height - bottom}" '
        f'y2="{height - bottom}"/>{kept}<polyline points="{path}"/></svg>'
    )


def data_url(image: Tensor) -> str:
    """An image (3, h, w) in [0, 1] as a PNG inside an address."""
    side = max(image.shape[-2:])
    if side > MAX_SIDE:
        scale = MAX_SIDE / side
        image = F.interpolate(image[None], scale_factor=scale, mode="area")[0]
    png = encode_png(to_uint8(image[None])[0])
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _pair_data(pair: Pair) -> dict[str, Any]:
    plain = {name: data_url(image) for name, image in pair.images.items()}
    with torch.no_grad():
        heat = {
            name: data_url(overlay(image[None], pair.maps[name][None])[0])
            for name, image in pair.images.items()
        }
    height, width = next(iter(pair.images.values())).shape[-2:]
    return {
        "prompt": pair.prompt,
        "seed": pair.seed,
        "ratio": f"{width}/{height}",
        "plain": plain,
        "heat": heat,
    }


def _controls(arms: Sequence[str]) -> str:
    options = "".join(f"<option>{escape(name)}</option>" for name in arms)
    return (
        '<p class="controls">'
        f'<label>left <select id="left">{options}</select></label> '
        f'<label>right <select id="right">{options}</select></label> '
        '<label><input type="checkbox" id="heat"> heat-map</label></p>'
    )


def _ordered(names: set[str]) -> list[str]:
    return [name for name in FIGURES if name in names] + sorted(names - set(FIGURES))


def _row(name: str, found: Iterable[Measured], sign: bool = False) -> str:
    """One figure in every column; `sign` for differences, coloured where clear of zero."""
    title, factor, unit = _shown(name)
    cells = "".join(_cell(value, interval, factor, sign) for value, interval in found)
    unit = f" <small>{unit}</small>" if unit else ""
    return f"<tr><th>{escape(title)}{unit}</th>{cells}</tr>"


def _shown(name: str) -> tuple[str, float, str]:
    """Title, factor and unit; `reward_area` is the area that the detector `reward` sees."""
    if name in FIGURES:
        return FIGURES[name]
    detector, _, kind = name.rpartition("_")
    if detector and f"artifact_{kind}" in FIGURES:
        title, factor, unit = FIGURES[f"artifact_{kind}"]
        return f"{detector}: {SEEN.get(kind, title.lower())}", factor, unit
    return name.replace("_", " "), 1.0, ""


def _cell(
    value: float | None, interval: Sequence[float] | None, factor: float, sign: bool = False
) -> str:
    if value is None or interval is None:
        return "<td>-</td>"
    low, high = (bound * factor for bound in interval)
    clear = ' class="clear"' if sign and (low > 0 or high < 0) else ""
    shown = f"{value * factor:+.3g}" if sign else f"{value * factor:.3g}"
    return f"<td{clear}>{shown} <small>[{low:.3g}, {high:.3g}]</small></td>"


def _plain_row(title: str, values: Sequence[float | None]) -> str:
    cells = "".join(f"<td>{'-' if v is None else f'{v:.4g}'}</td>" for v in values)
    return f"<tr><th>{escape(title)}</th>{cells}</tr>"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
