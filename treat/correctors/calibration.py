"""What a calibration found for one base and number of steps, as a file: written here, read here.

A `Calibration` file is JSON: the score bank's means, T_d, gamma, and the figures that chose them.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import UserError
from core.storage import read_json, write_atomic
from treat.inputs import of_base


class Calibration(BaseModel):
    """Of the corrector `asced` in one variant, on one base at so many steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    """As it was named; `digest` says which it is."""
    digest: str | None = None
    """Of its configs and weights, of a Hub id the commit; None: of an earlier version, which did
    not say."""
    steps: int
    variant: str
    bank: list[float]
    """Mean change of each of the T - 1 differences, over all images."""
    factor: float
    """tau over the paper's."""
    t_d: float
    gamma: float
    images: int
    seed: int | None = None
    height: int | None = None
    width: int | None = None
    """Pixels; None, as the seed: of an earlier version, which did not say."""
    helps: bool | None = None
    """Whether it left less artifact area than plain sampling and kept its variety; None: of an
    earlier version, which did not say."""
    tried: list[dict[str, Any]] = []
    """Every setting that was drawn, with its figures."""


def write_calibration(path: Path, found: Calibration) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (found.model_dump_json(indent=2) + "\n").encode())


def read_calibration(path: Path, base: str, steps: int, variant: str | None = None) -> Calibration:
    """Raise `UserError` for a file that is none, or is of another base, steps or variant."""
    if not path.is_file():
        raise UserError(f"there is no calibration {path}: `diffdoctor calibrate` writes one.")
    try:
        found = Calibration.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} is no calibration: `diffdoctor calibrate` writes one.") from error
    check_base(path, found, base)
    for name, said, here in (
        ("sampling_steps", found.steps, steps),
        ("variant", found.variant, variant or found.variant),
    ):
        if said != here:
            raise UserError(
                f"{path} was calibrated for {name} {said}, not {here}: calibrate again."
            )
    return found


def check_base(path: Path, found: Calibration, base: str) -> None:
    """By its content, wherever its folder now lies; of an earlier version's file by its name."""
    if found.digest is None:
        if Path(found.base).absolute() != Path(base).absolute():
            raise UserError(
                f"{path} was calibrated for base {found.base} by a version that knew it by its "
                f"name, and this is {base}: calibrate again."
            )
    elif found.digest != of_base(base):
        raise UserError(
            f"{path} was calibrated for base {found.base}, whose configs or weights are not those "
            f"of {base}: calibrate again."
        )


def check_pixels(path: Path, found: Calibration, height: int, width: int) -> None:
    """Raise `UserError` where the file says that it is of images of another size."""
    said = found.height, found.width
    if None not in said and said != (height, width):
        raise UserError(
            f"{path} was calibrated at {said[0]} x {said[1]} pixels, not {height} x {width}: "
            "calibrate again."
        )
