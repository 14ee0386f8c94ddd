"""Every setting of a detector's export; needs no torch."""

from pathlib import Path

import core.config
from detector.names import Format


class Config(core.config.Config):
    """Write a detector for use without this project."""

    run: Path
    """Folder of the detector, or of the run that trained it."""
    out: Path
    """Folder for the files and the card; nothing else may stand in it."""
    formats: tuple[Format, ...] | None = None
    """Beside the detector's own two files: transformers' folder, torch.export's program, ONNX
    (default: all that this installation can write)."""
    title: str = "DiffDoctor artifact detector"
    """Of the card."""
    license: str = ""
    """Of the weights, for the card's first lines; what code and data ask stands below."""
    evaluation: Path | None = None
    """JSON of `diffdoctor detector evaluate --json`: figures by category for the card."""
    push: str | None = None
    """Repository (OWNER/NAME) of the Hugging Face Hub that the folder is uploaded to."""
