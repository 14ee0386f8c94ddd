"""What the second detector says of a treatment's looks in; the step that is exported out.

Its lowest score alone would choose by chance: of a hundred images a difference between two looks
says little, and an early step, which has strayed further, can have the lowest.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treat.guard import FEWEST

SURE = 1.96
"""Standard errors, of a normal distribution's 95 % interval: a choice at every look, which needs no
draws of its own as the bootstrap of a report does."""


@dataclass
class Best:
    """The latest step that the second detector does not find worse than the one it likes best.

    Worse: the 95 % interval of the paired difference of their scores lies above 0; with fewer than
    `FEWEST` images, the score is not lower. A step counts only while the loss on real images stays
    within `rise` of the base's.
    """

    rise: float
    step: int | None = None
    score: float = math.inf
    """Of `step`."""
    lowest: float = math.inf
    each: list[float] = field(default_factory=list)
    """What the detector said of each image where its score was lowest."""
    base_offline: float | None = None
    since: int = 0
    """Looks since the lowest score."""

    def look(
        self,
        step: int,
        figures: Mapping[str, float],
        sound: bool = True,
        each: Sequence[float] = (),
    ) -> bool:
        """True if `step` is the one to export so far; step 0 is the base and only sets the scale.

        One that is not `sound` cannot be it. `each`: the score of each image, without which only
        a lower one will do.
        """
        offline = figures.get("watch_offline")
        if step == 0:
            self.base_offline = offline
            return False
        score = figures.get("second_mean")
        if score is None:
            return False
        held = offline is None or self.base_offline is None
        if not held:
            held = offline <= self.base_offline * (1 + self.rise)  # pyright: ignore
        lower = sound and held and score < self.lowest
        better = lower or (sound and held and self._alike(each))
        self.since = 0 if lower else self.since + 1
        if lower:
            self.lowest, self.each = score, list(each)
        if better:
            self.step, self.score = step, score
        return better

    def _alike(self, each: Sequence[float]) -> bool:
        """Whether what is higher than at the lowest score may be chance."""
        if len(each) != len(self.each) or len(each) < FEWEST or not all(map(math.isfinite, each)):
            return False
        more = [now - then for now, then in zip(each, self.each, strict=True)]
        return statistics.fmean(more) <= SURE * statistics.stdev(more) / math.sqrt(len(more))

    @property
    def known(self) -> float | None:
        return None if self.step is None else self.score

    def state(self) -> dict[str, Any]:
        """As JSON, which knows no infinity."""
        known = {"step": self.step, "base_offline": self.base_offline, "since": self.since}
        found = {"score": self.score, "lowest": self.lowest, "each": self.each}
        return known if self.step is None else known | found

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        # Older checkpoints hold one score, the lowest, and no `each`: their run ends as it began.
        self.lowest = min(self.lowest, self.score)
