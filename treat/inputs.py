"""What a treatment reads, noted in its run folder, so that what resumes it reads the same.

    inputs.json   a digest of every input, by its setting; images of an update

Settings only name inputs, and what lies under a name may change; so may the number of processes.
Until the first checkpoint nothing has come of either, and they are noted anew. What a run starts
from needs no note, for it stands in the checkpoints; what stands beside has one (`open_model`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from base_models.load import VARIANTS, locate
from core.digests import data_digest
from core.errors import UserError
from core.inputs import NOTE, check_same, former, note
from core.prompts import read_prompts
from core.run import Run
from core.storage import fingerprint
from detector.storage import DESCRIPTION, located
from treat.cache import digest
from treat.offline import read_offline
from treat.settings import Config

IMAGES = "images of an update"
"""The global batch: micro-batch x accumulation x processes."""
KINDS = {".json", ".txt", ".model", ".safetensors"}
"""What a model's folder is loaded from."""
MEMORY = {"recompute", "checkpoint_blocks", "checkpoint_decoder", "two_pass_decode"}
"""What is kept and what is computed again: the same bits on a CPU, elsewhere or compiled but for
rounding."""


def may_change(out: Path) -> set[str]:
    """Settings in which a run that goes on may differ from what it was."""
    shared = {"batch", "accumulation"} if (Path(out) / NOTE).is_file() else set()
    return {"steps", "guard", "tolerance"} | MEMORY | shared


def hold_to_inputs(config: Config, run: Run, processes: int) -> None:
    """Note the inputs of a run; raise `UserError` where those that it learnt from were others."""
    if not run.main_process:
        return
    now = {IMAGES: images_of_update(config, processes), **digests(config)}
    before = former(run)
    if before is not None:
        check_images(run.folder, before, now, processes)
        check_same(run.folder, before, now)
    note(run, now)


def images_of_update(config: Config, processes: int) -> int:
    return config.batch * config.accumulation * processes


def digests(config: Config) -> dict[str, str]:
    """A digest of what lies under every setting that names an input."""
    found = {"base": of_base(config.base)}
    for name in ("prompts", "watch_prompts", "picture_prompts"):
        if path := getattr(config, name):
            found[name] = digest(read_prompts(path))
    detectors = {
        "detector": [config.detector],
        "second_detector": [config.second_detector],
        "further_detectors": config.further_detectors,
    }
    for name, folders in detectors.items():
        if any(folders):
            found[name] = digest(of_detector(folder) for folder in folders if folder)
    if config.image_reward:
        found["image_reward"] = of_model(config.image_reward, config.image_reward.glob("*"))
    if config.offline:
        found["offline"] = of_real(config.offline, config.offline_limit)
    if config.refresh_data:
        found["refresh_data"] = digest(map(data_digest, config.refresh_data))
    return found


def of_base(base: str) -> str:
    """Of a folder's configs and weights; of a Hub id the commit."""
    path = locate(base, weights=False)
    if not Path(base).expanduser().exists():
        return path.name  # the Hub's cache names a snapshot after it
    folder = path.parent if path.is_file() else path
    single = [path] if path.is_file() else []
    return of_model(folder, [folder / "model_index.json", *folder.glob("*/*"), *single])


def of_real(path: Path, limit: int | None = None, captioned: bool = True) -> str:
    """Of real images, and of their captions where they must have some."""
    real = read_offline(path, limit, captioned=captioned)
    return digest([*real.captions, of_files(path, real.files)])


def of_detector(folder: Path) -> bytes:
    """Its description, which names the digest that its weights are held to when they are read."""
    return (located(folder) / DESCRIPTION).read_bytes()


def of_model(folder: Path, files: Iterable[Path]) -> str:
    """Of those of the files that a model is loaded from."""
    kept = [
        file
        for file in sorted(files)
        if file.is_file() and file.suffix in KINDS and not any(map(file.match, VARIANTS))
    ]
    return of_files(folder, kept)


def of_files(folder: Path, files: Iterable[Path]) -> str:
    """Of names and contents."""
    return digest(f"{file.relative_to(folder)} {fingerprint(file)}" for file in files)


def check_images(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], processes: int
) -> None:
    if before.get(IMAGES, now[IMAGES]) != now[IMAGES]:
        raise UserError(
            f"{folder} was begun with {before[IMAGES]} images an update (--batch x --accumulation "
            f"x processes), and now there would be {now[IMAGES]}: "
            f"{same_images(before[IMAGES], processes)}, or choose another --out."
        )


def same_images(images: int, processes: int) -> str:
    """The settings by which so many processes make an update of so many images."""
    if images % processes:
        return f"start a number of processes that divides {images}"
    with_these = "one process" if processes == 1 else f"{processes} processes"
    return f"with {with_these} give a --batch x --accumulation of {images // processes}"
