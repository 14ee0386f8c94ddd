"""`diffdoctor export`: a run in; `treat.export` or `detector.export`, as the run is, does it."""

import detector.export
import treat.export
from core.errors import UserError
from detector.storage import DESCRIPTION, located
from diffdoctor.export_settings import Config

SHARED = ("run", "out", "title", "license", "evaluation", "push")
"""Settings that mean the same for both."""


def main(config: Config) -> None:
    """Hand over to the program of the stage that made the run."""
    if (config.run.expanduser() / "demo.json").is_file():
        raise UserError(
            f"{config.run} is a whole demo: name {config.run}/adapter or {config.run}/detector."
        )
    is_detector = (located(config.run.expanduser()) / DESCRIPTION).is_file()
    check_own(config, is_detector)
    given = config.model_dump(exclude=set(Config.model_fields) - set(SHARED))
    if not is_detector:
        fields = set(treat.export.Config.model_fields)
        treat.export.main(treat.export.Config(**config.model_dump(include=fields)))
        return
    if not changed(config, "title"):
        given.pop("title")
    detector.export.main(detector.export.Config(**given, formats=config.formats))


def check_own(config: Config, is_detector: bool) -> None:
    """Raise `UserError` for a setting of the other kind of run: it would be passed over."""
    of_adapters = set(treat.export.Config.model_fields) - set(SHARED)
    strange = of_adapters if is_detector else {"formats"}
    for name in sorted(strange):
        if changed(config, name):
            kind = "a detector" if is_detector else "an adapter"
            option = name.replace("_", "-")
            raise UserError(f"{config.run} is {kind}, for which --{option} means nothing: drop it.")


def changed(config: Config, name: str) -> bool:
    return getattr(config, name) != Config.model_fields[name].default
