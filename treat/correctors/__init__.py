"""In: a base model that is drawing, and what finds its artifacts. Out: images corrected on the way.

Nothing is trained. Each corrector is one file or class and one line below, all of one signature
(`treat.correctors.moment`): called after every step, it gives back what enters the next.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal

from core.contracts import Detector
from core.errors import UserError
from treat.correctors.asced import Asced, StateReplacement
from treat.correctors.bayes import Bayes
from treat.correctors.clipping import ScoreClipping
from treat.correctors.guided import Guide, PalTtc, Sargd
from treat.correctors.moment import Corrector

CORRECTORS: dict[str, Any] = {
    "asced": Asced,
    "state_replacement": StateReplacement,
    "score_clipping": ScoreClipping,
    "bayes": Bayes,
    "sargd": Sargd,
    "trajectory": PalTtc,
    "guide": Guide,
}
NEEDS: dict[str, Literal["find", "detector", "laplace"] | None] = {
    "asced": "find",
    "state_replacement": "find",
    "score_clipping": None,
    "bayes": "laplace",
    "sargd": "detector",
    "trajectory": "detector",
    "guide": "detector",
}
"""The one part of each that is no number, its first field: a mask from anywhere, a detector that
leads it, or BayesDiff's last layer."""
LEAST = {"samples": 2}
"""Of whole numbers that must be more than 1."""
MOST: dict[str, float] = {
    "threshold": 1, "strength": 1, "start": 1, "t_c": 1, "t_d": 1, "eta": 1,
}  # fmt: skip
"""Of probabilities and shares."""


def make(name: str, part: Any, settings: dict[str, Any]) -> Corrector:
    """A corrector by its name, with the part that it `NEEDS` (else None) and its own numbers."""
    kind, need = CORRECTORS[name], NEEDS[name]
    if need == "detector":
        check_led(name, part)
    return kind(**settings) if need is None else kind(part, **settings)


def check_led(name: str, detector: Detector | None) -> None:
    """Raise `UserError` where a corrector needs another detector to lead it, or one at all."""
    if NEEDS[name] != "detector":
        return
    if detector is None:
        raise UserError(
            f"'{name}' is led by a detector that looks at images: give --detector FOLDER."
        )
    if name == "guide" and not detector.differentiable:
        raise UserError("'guide' follows a detector's gradient, and this one has none.")


def settings_of(name: str, words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE words as a corrector's numbers; `UserError` for a name or value that is none."""
    known = defaults(name)
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in known:
            close = get_close_matches(key, known, n=1) or [", ".join(known)]
            raise UserError(f"'{word}' is no setting of '{name}': it has {close[0]} (NAME=VALUE).")
        kind = type(known[key])
        try:
            found[key] = kind(text)
        except ValueError as error:
            raise UserError(f"{key} of '{name}' is a number, not '{text}'.") from error
        least, most = LEAST.get(key, 1) if kind is int else 0, MOST.get(key, math.inf)
        if not (math.isfinite(found[key]) and least <= found[key] <= most):
            ends = f"at least {least}" + (f" and at most {most}" if key in MOST else "")
            raise UserError(f"{key} of '{name}' is {ends}, not '{text}'.")
    return found


def defaults(name: str) -> dict[str, Any]:
    """The numbers of a corrector, but for its variant."""
    return {
        field.name: field.default
        for field in fields(CORRECTORS[name])
        if isinstance(field.default, int | float)
    }


__all__ = ["CORRECTORS", "NEEDS", "check_led", "defaults", "make", "settings_of"]
