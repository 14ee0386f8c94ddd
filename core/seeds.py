"""Integers in, random generators out: every random draw of the project starts here.

A draw names what it is for (`generator(seed, PURPOSE, step, index)`), so it is a pure function of
those integers whatever ran before, on whichever process.
"""

import hashlib
import operator

import torch


def mix(*numbers: int) -> int:
    """A stable 63-bit hash of a sequence of integers; order and grouping count.

    Equal on every machine and Python version. Raises `TypeError` for anything but integers.
    """
    text = ",".join(str(operator.index(number)) for number in numbers)
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by `mix(*numbers)`.

    torch's CPU engine keeps only the low 32 bits of a seed: among 10^5 streams about one pair
    coincides, which does no harm to training noise but rules streams out as identities.
    """
    return torch.Generator("cpu").manual_seed(mix(*numbers))
