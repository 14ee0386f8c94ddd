"""Figures by category and pictures in, one self-contained HTML page out; no script, no address."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from core.heatmap import Map, overlay
from core.image_files import encode_png
from core.images import Picture, to_uint8
from data_balancing.anomalies import FEWEST
from data_balancing.categories import Figures

MAX_SIDE = 256
"""Pixels: a page of ten categories stays under 10 MB."""


class Case(NamedTuple):
    """One image that shows what is odd."""

    key: str
    prompt: str
    sound: bool
    max: float
    image: Picture
    map: Map


def render(
    found: Mapping[str, Figures],
    whole: Mapping[str, Any],
    cases: Mapping[str, Sequence[Case]],
    *,
    threshold: float,
    q: float,
) -> str:
    """The page: what is odd in words, all figures, the worst cases."""
    body = [
        "<h1>What the detector makes of each category</h1>",
        f"<p>{whole['n']} images, {whole['broken']} of them count as broken (their surest pixel "
        f"reaches {threshold:g}). {_of_sound(whole['sound'], whole['false_positives'])}</p>",
        "<h2>In words</h2>",
        _in_words(found),
        "<h2>Figures</h2>",
        _table(found),
        f"<p class=small>{METHOD.format(q=q, fewest=FEWEST)}</p>",
    ]
    for name, rows in cases.items():
        body += [f"<h2>{escape(found[name].words)}</h2>", _gallery(rows, threshold)]
    return HEAD.format(style=STYLE) + "\n".join(body) + "</main></body></html>\n"


def _in_words(found: Mapping[str, Figures]) -> str:
    said = [one.words for one in found.values() if one.words]
    if not said:
        return "<p>No category stands out.</p>"
    items = "".join(f"<li>{escape(words[0].upper() + words[1:])}.</li>" for words in said)
    return f"<ul>{items}</ul>"


def _of_sound(sound: int, wrong: int) -> str:
    return f"Of {sound} known to be sound, {wrong} do." if sound else "None is known to be sound."


COLUMNS = ("", "images", "broken", "shrunk", "95 %", "mean maximum", "mean area",
           "of sound ones", "p", "p adjusted", "")  # fmt: skip


def _table(found: Mapping[str, Figures]) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = "".join(_row(name, one) for name, one in found.items())
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _row(name: str, one: Figures) -> str:
    low, high = one.rate_interval
    wrong = "-" if one.sound == 0 else f"{one.false_positives} of {one.sound}"
    cells = [
        str(one.n),
        f"{one.rate:.1%}",
        f"{one.rate_shrunk:.1%}",
        f"{low:.0%} to {high:.0%}",
        f"{one.max:.2f} <small>{one.max_shrunk:.2f}</small>",
        f"{one.area:.2%} <small>{one.area_shrunk:.2%}</small>",
        wrong,
        *("-" if p is None else f"{p:.2g}" for p in (one.p, one.p_adjusted)),
        one.anomaly or "",
    ]
    style = f' class="{one.anomaly}"' if one.anomaly else ""
    return f"<tr{style}><th>{escape(name)}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"


def _gallery(cases: Iterable[Case], threshold: float) -> str:
    return f'<div class="gallery">{"".join(_figure(case, threshold) for case in cases)}</div>'


def _figure(case: Case, threshold: float) -> str:
    with torch.no_grad():
        laid = overlay(case.image[None], case.map[None], threshold)[0]
    known = ", known to be sound" if case.sound else ""
    text = f"{case.prompt or case.key} (maximum {case.max:.2f}{known})"
    pictures = "".join(f'<img src="{_address(p)}" alt="">' for p in (case.image, laid))
    return f"<figure><div>{pictures}</div><figcaption>{escape(text)}</figcaption></figure>"


def _address(image: Picture) -> str:
    """An image as a PNG inside an address."""
    scale = MAX_SIDE / max(image.shape[-2:])
    if scale < 1:
        image = F.interpolate(image[None], scale_factor=scale, mode="area")[0]
    png = encode_png(to_uint8(image[None])[0])
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


METHOD = (
    "Shrunk: the mean of a beta-binomial posterior, its prior from the categories (Kleinman 1973); "
    "small figures beside means: normal-normal (Efron and Morris 1975). p: rank test of Mann and "
    "Whitney against all other images, one value a prompt, two-sided; categories or rests of fewer "
    "than {fewest} are not tested. Adjusted after Benjamini and Hochberg (1995): of the categories "
    "that stand out, on average at most a share of {q:g} do so by chance."
)

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Balance</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>{style}</style></head><body><main>
"""  # noqa: E501

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --dim: #626a73; --paper: #fff; --line: #d9dde2;
  --high: #b3261e; --low: #0b62c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --dim: #9aa3ad; --paper: #15181c;
  --line: #343a42; --high: #ff8a80; --low: #6cb0ff; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: auto; padding: 1rem; }
small, .small, figcaption { color: var(--dim); font-size: .85em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child { text-align: left; }
tr.high { color: var(--high); } tr.low { color: var(--low); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure div { display: flex; gap: 4px; }
img { width: 50%; border-radius: 4px; image-rendering: pixelated; }
"""
