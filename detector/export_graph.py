"""A detector in; the same network as torch.export's program and as an ONNX graph out, compared.

Both take images `(b, 3, h, w)` in 0..1 whose sides are multiples of the network's coarsest cell,
and give `(map, logits)`: resizing to such sides is the reader's (it is one line, and no two
libraries resize alike). The map of another size comes from the logits, as here.
"""

import io
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import UserError
from core.storage import write_atomic
from detector.maps import upsample
from detector.segformer import SegformerDetector

NEEDED = ("onnx", "onnxscript")
ONNX_EXTRA = "pip install onnx onnxscript"
TOLERANCE = 1e-4
"""Largest difference of a logit between ONNX and torch."""
EXAMPLE = (2, 4, 6)
"""Batch, and sides in coarsest cells, that the network is traced with; none is kept."""


class Portable(nn.Module):
    """A detector without its resizing; final."""

    def __init__(self, detector: SegformerDetector):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.detector.logits_at(images)
        return torch.sigmoid(upsample(logits, images.shape[-2:])), logits


def exported(detector: SegformerDetector) -> torch.export.ExportedProgram:
    """The network with any batch and any sides that its coarsest cell divides."""
    cell = detector.multiple
    batch, *cells = EXAMPLE
    images = torch.rand(batch, 3, *(n * cell for n in cells), generator=generator())
    sides = {0: torch.export.Dim("batch", max=4096)}
    for place, name in ((2, "rows"), (3, "columns")):
        count = torch.export.Dim(name, min=1, max=4096)
        sides[place] = cell * count if cell > 1 else count
    with torch.no_grad():
        return torch.export.export(
            Portable(detector).eval(), (images,), dynamic_shapes={"images": sides}, strict=False
        )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def probe(detector: SegformerDetector) -> Tensor:
    """Images of another batch and other sides than those that were traced."""
    cell = detector.multiple
    return torch.rand(1, 3, 5 * cell, 3 * cell, generator=generator())


@torch.no_grad()
def write_program(
    graph: torch.export.ExportedProgram, detector: SegformerDetector, path: Path
) -> None:
    """`.pt2`, read back and compared; raises `UserError` where it says anything else.

    Without the images it was traced with: they are all that torch would pickle into it.
    """
    content = io.BytesIO()
    graph.example_inputs = None
    torch.export.save(graph, content)
    write_atomic(path, content.getvalue())
    images = probe(detector)
    again = torch.export.load(path).module()(images)
    compare(again[1], detector.logits_at(images), path, 1e-5)


@torch.no_grad()
def write_onnx(
    graph: torch.export.ExportedProgram, detector: SegformerDetector, path: Path
) -> None:
    """One file with its weights in it; compared where onnxruntime is installed."""
    program: Any = torch.onnx.export(
        graph,
        dynamo=True,
        input_names=["images"],
        output_names=["map", "logits"],
        verbose=False,
    )
    write_atomic(path, program.model_proto.SerializeToString())  # below protobuf's 2 GiB
    if find_spec("onnxruntime") is None:
        print(f"{path.name} was not run: pip install onnxruntime, and export again to compare it.")
        return
    runtime = import_module("onnxruntime")  # of no extra: it only compares
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = probe(detector)
    logits = session.run(["logits"], {"images": images.numpy()})[0]
    compare(torch.from_numpy(np.asarray(logits)), detector.logits_at(images), path, TOLERANCE)


def missing_for_onnx() -> list[str]:
    """The packages that write ONNX and are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def check_onnx() -> None:
    """Raise `UserError` where what writes ONNX is missing."""
    if lost := missing_for_onnx():
        raise UserError(
            f"ONNX needs {' and '.join(lost)}: {ONNX_EXTRA}, or leave it out, "
            "--formats transformers program."
        )


def compare(there: Tensor, here: Tensor, path: Path, limit: float) -> None:
    off = (there - here).abs().max().item()
    if not off <= limit:  # NaN too
        path.unlink()
        raise UserError(
            f"{path.name} gave logits {off:.2g} apart from the detector's and was removed: leave "
            "this format out with --formats, and report it with the detector's variant."
        )
