"""Adapters and strengths in; further arms, a sheet and curves over the strength out.

An adapter at strength s changes a weight by s B A. Strength 0 is the base's arm and 1 the
adapter's own: only the others are drawn besides.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from core.images import contact_sheet
from treat.adapter import Adapter
from treat.arms import BASE
from treat.combine import scaled
from treat.report import FIGURES, Curve, Pair

DRAWN = ("artifact_frequency", "artifact_area", "attribute_match", "sharpness")
"""Figures over the strength, where they were measured."""
Sweep = Mapping[str, Sequence[tuple[float, str]]]
"""Adapter -> its strengths and the arms that were drawn at them, ascending."""


def arm(name: str, strength: float) -> str:
    """The arm of an adapter at a strength."""
    return {0.0: BASE, 1.0: name}.get(strength, f"{name}@{plain(strength)}")


def plain(strength: float) -> str:
    """Without a needless .0; never rounded, for two strengths must not share an arm."""
    return repr(float(strength)).removesuffix(".0")


def sweep(names: Iterable[str], strengths: Sequence[float]) -> Sweep:
    """Every adapter with its arms; nothing without strengths. 0 and 1 are always there."""
    if not strengths:
        return {}
    every = sorted({0.0, 1.0, *strengths})
    return {name: [(one, arm(name, one)) for one in every] for name in names}


def spread(arms: Mapping[str, Adapter | None], swept: Sweep) -> dict[str, Adapter | None]:
    """The arms, each adapter's further strengths after it."""
    spread_out: dict[str, Adapter | None] = {}
    for name, adapter in arms.items():
        spread_out[name] = adapter
        for strength, other in swept.get(name, ()):
            if adapter is not None and other not in arms:
                spread_out[other] = Adapter(scaled(adapter, strength), adapter.step, adapter.run)
    return spread_out


def curves(swept: Sweep, arms: Mapping[str, Mapping[str, Any]]) -> list[Curve]:
    """The figures of an evaluation over the strength."""
    found = []
    for name, steps in swept.items():
        for figure in DRAWN:
            points = [
                (s, float(arms[a][figure])) for s, a in steps if arms[a].get(figure) is not None
            ]
            title = FIGURES[figure][0]
            found.append(Curve(f"{name}, by strength: {title}", points, axis="strength"))
    return [curve for curve in found if len(curve.points) > 1]


def sheet(swept: Sweep, pairs: Sequence[Pair]) -> Tensor:
    """A row for every prompt, a column for every strength of every adapter."""
    columns = [(f"{name} {s:g}", other) for name, steps in swept.items() for s, other in steps]
    rows = [[pair.images[other] for _, other in columns] for pair in pairs]
    return contact_sheet(rows, [pair.prompt for pair in pairs], [title for title, _ in columns])
