"""In: a base model that is drawing, and what finds its artifacts. Out: images corrected on the way.

Nothing is trained. Each corrector is one file or class and one line below, all of one signature
(`treat.correctors.moment`): called after every step, it gives back what enters the next.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

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


LEAST = {"samples": 2}
"""Of whole numbers that must be more than 1."""


def make(name: str, settings: dict[str, Any], **parts: Any) -> Corrector:
    """A corrector by its name, with its own numbers; `UserError` for a part that it lacks.

    Of the `parts` it takes what it asks for: `find` (a mask from anywhere), `detector` (that leads
    it), `laplace` (BayesDiff's last layer).
    """
    kind = CORRECTORS[name]
    check_led(name, parts.get("detector"))
    asked = {field.name for field in fields(kind)}
    return kind(**{part: found for part, found in parts.items() if part in asked}, **settings)


def check_led(name: str, detector: Detector | None) -> None:
    """Raise `UserError` where a corrector needs another detector to lead it, or one at all."""
    if not any(field.name == "detector" for field in fields(CORRECTORS[name])):
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
        least = LEAST.get(key, 1) if kind is int else 0
        if not (math.isfinite(found[key]) and found[key] >= least):
            raise UserError(f"{key} of '{name}' is at least {least}, not '{text}'.")
    return found


def defaults(name: str) -> dict[str, Any]:
    """The numbers of a corrector, but for its variant."""
    return {
        field.name: field.default
        for field in fields(CORRECTORS[name])
        if isinstance(field.default, int | float)
    }


__all__ = ["CORRECTORS", "check_led", "defaults", "make", "settings_of"]
