"""The weights of a LoRA file in, module by module; what is wrong with the changes they make out.

One module's pages are looked at in pieces and let go; nothing of the size of B A is ever made.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from treat.lora_files.checks import WEIGHTS, misfit
from treat.lora_files.content import Content
from treat.lora_files.faults import Found
from treat.lora_files.file import LoraFile
from treat.lora_files.readers import meant

PIECE = 1 << 20
"""Numbers looked at together."""
LARGE = 2.0
"""Change per number, times the root of the inputs: 1 is what a freshly drawn layer has itself."""
OUTLIER = 100.0
"""Times the file's median."""
FEW = 8
"""Modules, of which a median says nothing."""
CHUNK = 1 << 20
LEGACY = (0x100000, 0x110000)
"""The bytes that kohya's first hash reads."""


class Change(NamedTuple):
    """What one module does to its weight."""

    finite: bool
    size: float
    """Root mean square of scale * B A, times the root of the inputs."""


def values(content: Content) -> list[Found]:
    """Faults of the numbers; modules whose shapes or dtypes are faulty are passed over."""
    found: list[Found] = []
    sizes: dict[str, float] = {}
    for place, one in content.all.items():
        if not one.whole or not _readable(content, place):
            continue
        a, b = (content.file.tensor(one.roles[role]) for role in "AB")
        change = measured(a, b, meant(content, place))
        if not change.finite:
            found.append(("not-finite", place, ""))
        else:
            sizes[place] = change.size
    return found + list(_compared(sizes))


def _readable(content: Content, place: str) -> bool:
    entries = [content.file.entries[content.all[place].roles[role]] for role in "AB"]
    a, b = entries
    return (
        all(entry.dtype in WEIGHTS and len(entry.shape) in (2, 4) for entry in entries)
        and 0 not in (*a.shape, *b.shape)
        and a.shape[0] == b.shape[1]
        and misfit(a.shape, b.shape) != "sides"
    )


def measured(a: Tensor, b: Tensor, scale: float) -> Change:
    """Of A (rank, ...) and B (outputs, rank, ...): |B A|^2 is the trace of (B' B)(A A')."""
    if not (finite(a) and finite(b)):
        return Change(False, math.nan)
    a, b = a.flatten(1), b.flatten(1)
    outer, inner = gram(a.T), gram(b)
    square = float((outer * inner).sum().clamp_min(0))
    return Change(True, abs(scale) * math.sqrt(square / b.shape[0]))


def finite(tensor: Tensor) -> bool:
    flat = tensor.reshape(-1)
    return all(bool(piece.float().isfinite().all()) for piece in flat.split(PIECE))


def gram(tall: Tensor) -> Tensor:
    """M' M of a matrix with many rows, in float64, summed over pieces of the rows."""
    total = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for rows in tall.split(max(PIECE // max(tall.shape[1], 1), 1)):
        total += rows.double().T @ rows.double()
    return total


def _compared(sizes: Mapping[str, float]) -> Iterator[Found]:
    zero = [place for place, size in sizes.items() if size == 0]
    for place in zero:
        yield ("nothing" if len(zero) == len(sizes) else "partly-nothing"), place, ""
    middle = statistics.median([size for size in sizes.values() if size] or [0.0])
    for place, size in sizes.items():
        if size > LARGE:
            yield "large", place, f"{size:.3g} times a fresh layer's weights"
        elif len(sizes) >= FEW and size > OUTLIER * middle > 0:
            yield "outlier", place, f"{size / middle:.3g} times the median"


# Hashes


def hashes(file: LoraFile) -> Iterator[Found]:
    """The header's hashes that the bytes do not give."""
    said = {
        "sshs_model_hash": file.metadata.get("sshs_model_hash"),
        "modelspec.hash_sha256": file.metadata.get("modelspec.hash_sha256"),
    }
    if any(said.values()):
        whole = digest(file, 0, None)
        for name, value in said.items():
            if value and value.lower().removeprefix("0x") != whole:
                yield "hash", name, ""
    legacy = file.metadata.get("sshs_legacy_hash")
    begin = LEGACY[0] - 8 - training_header(file)
    if legacy and begin >= 0 and legacy.lower() != digest(file, begin, LEGACY[1] - LEGACY[0])[:8]:
        yield "hash", "sshs_legacy_hash", ""


def kohya_hashes(tensors: Mapping[str, Tensor], training: Mapping[str, str]) -> tuple[str, str]:
    """kohya's hash of the tensors and its first one, over a file with its training entries only."""
    file = safetensors.torch.save(dict(tensors), metadata=dict(training))
    whole = hashlib.sha256(file[8 + int.from_bytes(file[:8], "little") :]).hexdigest()
    return whole, hashlib.sha256(file[slice(*LEGACY)]).hexdigest()[:8]


def digest(file: LoraFile, begin: int, count: int | None) -> str:
    """sha256 of so many bytes of the tensors from `begin` on."""
    total = hashlib.sha256()
    with file.path.open("rb") as stream:
        stream.seek(file.start + begin)
        while count is None or count > 0:
            piece = stream.read(CHUNK if count is None else min(CHUNK, count))
            if not piece:
                break
            total.update(piece)
            count = None if count is None else count - len(piece)
    return total.hexdigest()


def training_header(file: LoraFile) -> int:
    """Bytes of the header over which kohya hashes: it has the training entries only."""
    said = {name: text for name, text in file.metadata.items() if name.startswith("ss_")}
    header: dict[str, object] = {"__metadata__": said}
    for name, entry in file.entries.items():
        offsets = [entry.begin, entry.end]
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return -(-len(text) // 8) * 8
