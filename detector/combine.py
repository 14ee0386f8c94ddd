"""Several detectors in; one folder out that every program takes as a single detector.

    diffdoctor detector ensemble runs/first runs/second --combine mean --out runs/both

The folder holds the weights of all: the first ones may be moved or deleted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

import core.config
from core.errors import UserError
from core.storage import check_writable
from detector.ensemble import Combination, Ensemble, EnsembleConfig
from detector.storage import (
    DESCRIPTION,
    TENSORS,
    digest,
    located,
    open_detector,
    read_description,
    save_ensemble,
)

MEMBERS = "members_sha256"
"""In the card: the members' digests, in their order."""


class Config(core.config.Config):
    """Which detectors become one."""

    detectors: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        core.config.placed("DETECTOR", several=True),
        Field(min_length=2),
        core.config.told("an ensemble is of two detectors or more; name another folder"),
    ]
    """Folders of two detectors or more, or of the runs that trained them; of any kind."""
    out: Path
    """Folder of the ensemble."""
    combine: Combination = "mean"
    """The mean of their maps, or pixel by pixel the largest."""


def digests_of(folder: Path) -> list[str]:
    """Of a detector and, where it is an ensemble, of its members."""
    return [digest(folder), *read_description(folder).card.get(MEMBERS, [])]


def main(config: Config) -> None:
    digests = [digest(folder) for folder in config.detectors]
    check_out(config.out, config.detectors, digests, config.combine)
    opened = []
    for folder in config.detectors:
        detector = open_detector(folder)
        if isinstance(detector, Ensemble):
            raise UserError(f"{folder} is an ensemble itself: name its members instead.")
        opened.append(detector)
    names = [folder.resolve().name for folder in config.detectors]
    card = {"members": names, MEMBERS: digests}
    save_ensemble(opened, config.combine, config.out, card)
    print(f"{config.out}: the {config.combine} of {', '.join(names)}")


def check_out(
    out: Path, detectors: Sequence[Path], digests: Sequence[str], combine: Combination
) -> None:
    """Refuse the folder of a member, and one with anything but this very ensemble."""
    check_writable(out)
    for folder in detectors:
        if located(folder).resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out} holds the member {folder}: name another --out.")
    found = {path.name for path in out.glob("[!.]*")}
    strange = sorted(found - {TENSORS, DESCRIPTION})
    if strange:
        raise UserError(f"{out} holds other files ('{strange[0]}'): name another --out.")
    if DESCRIPTION in found:
        former = read_description(out)
        alike = isinstance(former.config, EnsembleConfig) and former.config.combine == combine
        if not alike or former.card.get(MEMBERS) != list(digests):
            raise UserError(f"{out} holds another detector: name another --out.")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m detector.combine")
