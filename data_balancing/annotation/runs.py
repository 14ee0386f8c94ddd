"""Run lengths of yes and no, beginning with the no-run: what CVAT and COCO share.

Legend: n pixels in a row.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from core.errors import UserError

Row = Bool[np.ndarray, " n"]


def to_runs(row: Row) -> list[int]:
    """Lengths of the runs, the first of which is 0 where the row begins with yes."""
    edges = np.flatnonzero(row[1:] != row[:-1]) + 1
    runs = np.diff(edges, prepend=0, append=len(row)).tolist()
    return [0, *runs] if row[:1].any() else runs


def from_runs(runs: Sequence[int], n: int, where: str) -> Row:
    """The row of n pixels; `UserError` unless the runs fill it exactly."""
    if any(run < 0 for run in runs) or sum(runs) != n:
        raise UserError(f"{where}: the run lengths do not fill {n} pixels; export it again.")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)
