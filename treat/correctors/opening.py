"""A corrector by its name and words in; what makes it, once a base model is there, out.

Everything a person can get wrong is said before any weight of the base is read.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from core.contracts import Detector, DiffusionModel
from core.errors import UserError
from core.seeds import mix
from detector import last_layer
from detector.score_dynamics import T_C, Variant, Window, check_window
from treat.correctors import NEEDS, check_led, defaults, make, settings_of
from treat.correctors.calibration import check_pixels, read_calibration
from treat.correctors.find import ByDetector, ByDynamics, ByUncertainty
from treat.correctors.moment import Corrector
from treat.names import DYNAMICS, UNCERTAINTY
from treat.offline import RealImages, read_offline
from treat.offline import fit as fitted

FITTED, TIMES, PRIOR = 64, 4, 1.0
"""Real images that BayesDiff's last layer is fitted on, noised so often each, and the weights'
prior precision."""
CALIBRATED = {"asced": ("t_d", "gamma"), "state_replacement": ("t_d",)}
"""What each takes of a calibration, beside its bank and factor."""
ASCED_PAPER, ASCED_CODE = ("gamma",), ("back", "shake", "eta")
"""Numbers that only the one or the other of its variants has."""
LAPLACE = 73
"""What a draw is for; see `core.seeds`."""


class Wanted(NamedTuple):
    """What a person asked for."""

    name: str
    variant: Variant
    words: Sequence[str]
    """NAME=VALUE each."""
    base: str
    prompted: bool
    steps: int
    height: int
    width: int
    seed: int
    calibration: Path | None = None
    real: Path | None = None
    unsure: bool = False
    """What finds is the network's own uncertainty."""


class Opened(NamedTuple):
    make: Callable[[DiffusionModel], Corrector]
    """To be called while the model still has its text encoders."""
    window: Window
    """In which dynamics are read."""
    helps: bool | None = None
    """What the calibration says of correcting at all."""
    calibrated: int | None = None
    """The seed that it was calibrated on, where that is known."""


def open_corrector(wanted: Wanted, detector: Detector | None) -> Opened:
    """Raise `UserError` for what cannot be made.

    `detector` finds, or None: the uncertainty does where that is wanted, else score dynamics.
    """
    settings = settings_of(wanted.name, wanted.words)
    check_numbers(wanted, settings)
    bank, factor, helps, calibrated = None, 1.0, None, None
    if wanted.calibration is not None:
        if wanted.name not in CALIBRATED:
            raise UserError(
                "a calibration is for --corrector asced or state_replacement, which finds by the "
                "same mask: leave --calibration out."
            )
        known = read_calibration(wanted.calibration, wanted.base, wanted.steps, wanted.variant)
        check_pixels(wanted.calibration, known, wanted.height, wanted.width)
        bank, factor, helps, calibrated = known.bank, known.factor, known.helps, known.seed
        settings = {name: getattr(known, name) for name in CALIBRATED[wanted.name]} | settings
    if wanted.name == "asced":
        settings["variant"] = wanted.variant
    need = NEEDS[wanted.name]
    check_led(wanted.name, detector)
    unsure = need == "laplace" or (need == "find" and wanted.unsure)
    if unsure and wanted.real is None:
        raise UserError("'bayes' fits its last layer on real images: give --real FOLDER.")
    numbers = {"t_c": T_C, "t_d": 1.0, **defaults(wanted.name), **settings}
    window = Window(numbers["t_c"], numbers["t_d"])
    if "t_c" in defaults(wanted.name):
        check_window(window, wanted.steps)
    if unsure:
        real = read_offline(Path(str(wanted.real)), FITTED, captioned=wanted.prompted)

        def fitting(model: DiffusionModel) -> Corrector:
            laplace = fit(model, real, wanted.steps, wanted.height, wanted.width, wanted.seed)
            part = laplace if need == "laplace" else ByUncertainty(laplace)
            return make(wanted.name, part, settings)

        return Opened(fitting, window, helps)
    part = detector
    if need == "find":
        dynamics = ByDynamics(wanted.variant, bank, factor)
        part = dynamics if detector is None else ByDetector(detector)
    corrector = make(wanted.name, part, settings)
    return Opened(lambda model: corrector, window, helps, calibrated)


def check_numbers(wanted: Wanted, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a number that this variant, or this calibration, would ignore."""
    if wanted.name == "asced":
        idle = ASCED_CODE if wanted.variant != "code" else ASCED_PAPER
        for name in settings:
            if name in idle:
                raise UserError(
                    f"{name} has no part in variant {wanted.variant} of 'asced': leave it out."
                )
    if wanted.calibration is not None and settings.get("t_c", T_C) != T_C:
        raise UserError(
            f"{wanted.calibration} was found for t_c {T_C}: leave t_c out, or --calibration."
        )


def found_by(name: str, detector: str, variant: Variant) -> str | None:
    """What finds for a corrector, in words; None where nothing does.

    `detector` is a person's word: `score_dynamics`, `bayes`, or a folder.
    """
    if NEEDS[name] is None:
        return None
    if NEEDS[name] == "laplace" or detector == UNCERTAINTY:
        return "BayesDiff's uncertainty"
    if detector == DYNAMICS:
        return f"score dynamics, variant {variant}"
    return f"the detector {detector}"


def check_used(wanted: Wanted, detector: str) -> None:
    """Raise `UserError` for what this corrector, with this word for what finds, would ignore."""
    name, need = wanted.name, NEEDS[wanted.name]
    own = {"laplace": (DYNAMICS, UNCERTAINTY), None: (DYNAMICS,)}  # the first is the default
    if need in own and detector not in own[need]:
        how = "nothing has to be found" if need is None else "it finds by its own uncertainty"
        raise UserError(
            f"--detector {detector} has no part in '{name}' ({how}): leave it out, and name who "
            "judges with --judges NAME=FOLDER."
        )
    if wanted.real is not None and need != "laplace" and detector != UNCERTAINTY:
        raise UserError("--real is what 'bayes' is fitted on: leave it out, or --detector bayes.")
    dynamics = need == "find" and detector == DYNAMICS
    if wanted.variant != "paper" and name != "asced" and not dynamics:
        raise UserError(f"'{name}' has no --variant {wanted.variant} here: leave it out.")
    if wanted.calibration is not None and name in CALIBRATED and not dynamics:
        raise UserError(
            "a calibration is of score dynamics: leave --detector out, or --calibration (gamma "
            "alone: --set gamma=VALUE)."
        )


def fit(
    model: DiffusionModel, real: RealImages, steps: int, height: int, width: int, seed: int
) -> last_layer.Laplace:
    """BayesDiff's last layer, from every image at several times and noises."""
    place = model.schedule(steps, height, width).timesteps.device
    pictures = [fitted(real.picture(i), height, width) for i in range(len(real))]
    clean = torch.cat([model.encode(picture.to(place)) for picture in pictures])
    rows = {name: part.to(place) for name, part in model.encode_prompts(real.captions).items()}
    again = {name: part.repeat(TIMES, *[1] * (part.ndim - 1)) for name, part in rows.items()}
    seeds = [mix(seed, LAPLACE, i) for i in range(TIMES * len(real))]
    return last_layer.fit(model, clean.repeat(TIMES, 1, 1, 1), again, seeds, PRIOR)
