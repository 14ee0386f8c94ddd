"""Every setting of an export, of an adapter or a detector; needs no torch."""

from pathlib import Path

import treat.export_settings
from detector.names import Format


class Config(treat.export_settings.Config):
    """Write an adapter, or a detector, for use elsewhere: the run says which it is."""

    run: Path
    """Run folder of `diffdoctor treat` or of `diffdoctor detector train`; one of a treatment's
    checkpoints, a LoRA file or a detector's folder."""
    formats: tuple[Format, ...] | None = None
    """Of a detector, beside its own two files (default: all that this installation can write;
    `onnx` needs pip install onnx onnxscript)."""
