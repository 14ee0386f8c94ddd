"""Several detectors in; one folder out that every program takes as a single detector.

    diffdoctor detector ensemble runs/first runs/second --combine mean --out runs/both

The folder holds the weights of all: the first ones may be moved or deleted.
"""

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

import core.config
from core.errors import UserError
from core.storage import check_writable
from detector.ensemble import Combination, Ensemble
from detector.storage import digest, open_detector, save_ensemble


class Config(core.config.Config):
    """Which detectors become one."""

    detectors: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        core.config.placed("DETECTOR", several=True),
        Field(min_length=2),
    ]
    """Folders of two detectors or more, or of the runs that trained them; of any kind."""
    out: Path
    """Folder of the ensemble."""
    combine: Combination = "mean"
    """The mean of their maps, or pixel by pixel the largest."""


def main(config: Config) -> None:
    check_writable(config.out)
    opened = []
    for folder in config.detectors:
        detector = open_detector(folder)
        if isinstance(detector, Ensemble):
            raise UserError(f"{folder} is an ensemble itself: name its members instead.")
        opened.append(detector)
    names = [folder.resolve().name for folder in config.detectors]
    card = {"members": names, "members_sha256": [digest(folder) for folder in config.detectors]}
    save_ensemble(opened, config.combine, config.out, card)
    print(f"{config.out}: the {config.combine} of {', '.join(names)}")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m detector.combine")
