"""The settings of a treatment in; what is wrong with the files they name, before anything heavy.

All raise `UserError`. Whatever is read here is read again when it is needed: a run folder that was
claimed for a mistake could not be used with its correction.
"""

from typing import TypeVar

from base_models.sizes import usual_size, usual_steps
from core.config import from_mapping
from core.errors import UserError
from data_balancing.annotator_command import check_command
from detector.data import open_labelled
from detector.storage import check_segformer, digest, open_detector
from treat.offline import check_pictures, read_offline
from treat.settings import Config

C = TypeVar("C", bound=Config)


def whole(config: C) -> C:
    """The settings with what they leave to the base: its own size, and its usual steps."""
    height, width = usual_size(config.base, config.height, config.width)
    steps = config.sampling_steps or usual_steps(config.base)
    found = {"height": height, "width": width, "sampling_steps": steps}
    return from_mapping(type(config), {**dict(config), **found}, config.base)


def check_detectors(config: Config) -> None:
    """Every detector opens, weights and all, and none that teaches also looks."""
    teaching = [folder for folder in (config.detector, *config.further_detectors) if folder]
    looking = [config.second_detector] if config.second_detector else []
    for folder in (*teaching, *looking):
        open_detector(folder)
    if config.pixel_weight and {*map(digest, teaching)} & {*map(digest, looking)}:
        raise UserError(
            f"the second_detector {config.second_detector} is one that is learnt from, and what "
            "is learnt from cannot tell whether it is deceived: name another, or none."
        )


def every_size(config: Config) -> list[tuple[int, int]]:
    """(height, width) of what is drawn while learning; the first is of what is watched."""
    further = [size.split("x") for size in config.sizes]
    sides = [(config.height, config.width), *((int(h), int(w)) for h, w in further)]
    return [usual_size(config.base, *size) for size in sides]


def check_offline(config: Config, *, decode: bool) -> None:
    """There are real images with captions; before a run begins, each may be decoded once."""
    if config.offline is None:
        return
    images = read_offline(config.offline, config.offline_limit)
    if not len(images):
        raise UserError(f"{config.offline} holds no images: name a folder that does.")
    if decode and not (config.out / "checkpoints").exists():
        check_pictures(images)


def check_refreshes(config: Config) -> None:
    """The detector can be taught on, the annotator be started, and its data be read."""
    if not config.refresh_every:
        return
    if config.detector is not None:
        check_segformer(config.detector)
    check_command(config.annotator)
    if config.refresh_data:
        open_labelled(config.refresh_data)
