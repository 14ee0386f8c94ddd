"""Seeds in, the order of samples out: a pure function, so that a resume is three integers."""

from functools import lru_cache

import numpy as np

from core.errors import UserError
from core.seeds import mix

_ORDER = 1
"""What the draw is for: keeps the order apart from other uses of the same seed."""


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of n positions (int64, read-only), a pure function of its arguments.

    Positions are sorted by a hash (SplitMix64's finaliser, Steele et al. 2014), which no later
    version of a library can change.
    """
    return _order(n, seed, epoch)


@lru_cache(maxsize=128)  # one for each cell of a quota
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    word = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word += np.uint64(mix(_ORDER, seed, epoch))
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order = np.argsort(word ^ (word >> np.uint64(31)), kind="stable")
    order.setflags(write=False)
    return order


def batch_indices(n: int, batch: int, seed: int, k: int) -> list[int]:
    """Positions of global batch k: samples [k batch, (k+1) batch) of the endless epoch stream.

    The same whatever the number of processes, which share it out; a batch may span epochs.
    """
    if n < 1 or batch < 1:
        raise UserError(f"a batch of {batch} from {n} samples is empty; give it samples.")
    places = (divmod(p, n) for p in range(k * batch, (k + 1) * batch))
    return [int(epoch_order(n, seed, epoch)[i]) for epoch, i in places]
