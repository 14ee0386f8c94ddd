"""Damaged data sets, made by a seed, and what becomes of them; also a program, to be measured.

`python -m tests.data_balancing.damage TRIALS SEED FOLDER` prints a line of JSON.
"""

import copy
import json
import random
import re
import shutil
import struct
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.samples import Record
from data_balancing.entries import Labelled
from data_balancing.formats import FORMATS, Format
from tests.data_balancing.sets import SETS, tfrecord

ODD: list[Any] = [
    None, True, -1, 0, 3, 1.5, 10**30, 1e308, float("nan"), float("inf"), "", "Negative", "\ud800",
    "a\0b", "../../x", "/etc/passwd", "x" * 5000, [], [[]], {}, {"7": {}}, [[1, 2], [3, 4]],
]  # fmt: skip
KINDS = ["flip", "flips", "truncate", "zero", "missing", "swap", "empty", "noise", "inner"]


def damage(draw: random.Random, folder: Path) -> str:
    """One random fault in one file below a folder; returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kind = draw.choice(KINDS)
    if kind == "inner":  # a fault inside whole JSON or a record with a right checksum
        files = [path for path in files if path.suffix in (".json", ".jsonl", ".tfrecord")] or files
    victim = draw.choice(files)
    content = bytearray(victim.read_bytes())
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 20):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "truncate":
        del content[draw.randrange(len(content)) :]
    elif kind == "zero":
        start = draw.randrange(len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    elif kind == "swap":
        content = bytearray(draw.choice(files).read_bytes())
    elif kind in ("empty", "noise"):
        content = bytearray(draw.randbytes(0 if kind == "empty" else draw.randrange(1, 2000)))
    elif kind == "inner":
        content = bytearray(_inner(draw, victim, content))
    victim.write_bytes(content)
    if kind == "missing":
        victim.unlink()
    return f"{kind} {victim.relative_to(folder)}"


def _inner(draw: random.Random, victim: Path, content: bytearray) -> bytes:
    if victim.suffix in (".json", ".jsonl"):
        lines = content.decode().splitlines()
        line = draw.randrange(len(lines))
        holder = [json.loads(lines[line])]
        for _ in range(draw.randrange(1, 4)):
            _mutate(draw, holder)
        lines[line] = json.dumps(holder[0])
        return "\n".join(lines).encode()
    if victim.suffix == ".tfrecord":
        length = struct.unpack("<Q", content[:8])[0]
        payload = content[12 : 12 + length]
        for _ in range(draw.randrange(1, 4)):
            payload[draw.randrange(60 if draw.random() < 0.7 else length)] ^= 1 << draw.randrange(8)
        return tfrecord(bytes(payload)) + bytes(content[16 + length :])
    content[draw.randrange(len(content))] ^= 255
    return bytes(content)


def _mutate(draw: random.Random, holder: Any) -> None:
    """Put something odd at a random place of nested lists and dicts, or take that place away."""
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = draw.choice(keys)
        inner = holder[key]
        if isinstance(inner, (list, dict)) and inner and draw.random() < 0.8:
            holder = inner
            continue
        if draw.random() < 0.2 and len(keys) > 1:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw.choice(ODD))
        return


def check(found: Labelled) -> None:
    """What a reader promises of what it gives."""
    assert found.image.dtype == np.uint8 and found.image.ndim == 3 and found.image.shape[2] == 3
    assert found.image.size
    if found.mask is not None:
        assert found.mask.dtype == np.uint8 and found.mask.ndim == 2 and found.mask.size
    Record(key="any", **found.said).model_dump_json().encode()


def outcomes(name: str, made: Format, root: Path, images: Path | None) -> Counter:
    """Entries used and refused; `whole` is a set that was refused at once."""
    counted = Counter()
    try:
        for entry in made.read(root, images):
            assert entry.name.encode()
            try:
                check(entry.read())
                counted["used"] += 1
            except UserError as error:
                assert str(error).encode(errors="backslashreplace")
                counted["refused"] += 1
    except UserError:
        counted["whole"] += 1
    return counted


def trials(
    count: int, seed: int, folder: Path, formats: Mapping[str, Format] = FORMATS
) -> dict[str, Any]:
    """Damaged sets in turn over the formats: what became of their entries, and every fault."""
    counted, faults, slowest = Counter(), [], 0.0
    for trial in range(count):
        draw = random.Random(seed * 1_000_000 + trial)
        name = list(formats)[trial % len(formats)]
        shutil.rmtree(folder, ignore_errors=True)
        root, images = SETS[name](folder)
        done = damage(draw, folder)
        start = time.monotonic()
        try:
            found = outcomes(name, formats[name], root, images)
            counted += found
            counted["sets with a refusal"] += bool(found["refused"] or found["whole"])
        except Exception as error:
            faults.append(f"trial {trial}, {name}, {done}: {error!r}")
        slowest = max(slowest, time.monotonic() - start)
    return {**counted, "faults": faults, "slowest": slowest}


def peak() -> float:
    """MiB of this program's largest resident set so far."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def main(count: int, seed: int, folder: Path) -> None:
    before = peak()
    found = trials(count, seed, folder)
    print(json.dumps({**found, "before": before, "peak": peak()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
