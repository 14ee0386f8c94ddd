"""Images and their prompts in, an annotator's masks out: the annotator is any command.

The command gets one more argument, the full path of a folder with `images/*.png` and
`prompts.jsonl` (one `{"image": ..., "prompt": ...}` a line), and writes `masks/*.png`: same stem,
8-bit, 255 = artifact.

Legend: b batch, h w pixels.
"""

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from core.contracts import ArtifactMap, Images
from core.errors import UserError
from core.heatmap import read_map
from core.image_files import encode_png
from core.images import to_uint8
from core.storage import write_atomic

POLL = 0.2
"""Seconds between looks at the command."""
GRACE = 5.0
"""Seconds an annotator is given to end after SIGTERM."""


def check_command(command: Sequence[str]) -> None:
    """Raise `UserError` where there is no such command to start."""
    if shutil.which(command[0]) is None:
        raise UserError(f"there is no command {command[0]!r} to run: check --annotator.")


def write_task(folder: Path, images: Images, prompts: Sequence[str]) -> None:
    """Lay out the folder; a mask whose image has changed is removed, the others stay."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    lines = []
    for index, (levels, prompt) in enumerate(zip(to_uint8(images), prompts, strict=True)):
        name = f"{index:05d}.png"
        path, content = folder / "images" / name, encode_png(levels)
        if not path.is_file() or path.read_bytes() != content:
            (folder / "masks" / name).unlink(missing_ok=True)
            write_atomic(path, content)
        lines.append(json.dumps({"image": f"images/{name}", "prompt": prompt}))
    write_atomic(folder / "prompts.jsonl", "".join(line + "\n" for line in lines).encode())


def annotate(
    folder: Path, command: Sequence[str], stop: Callable[[], bool] = lambda: False
) -> bool:
    """Run the annotator unless every mask is there; False if `stop` asked to end early.

    Raises `UserError` when the command is missing, fails, or leaves an image without a mask.
    """
    if _missing(folder) and not _run(
        [*command, str(folder.resolve())], folder / "annotator.log", stop
    ):
        return False
    missing = _missing(folder)
    if missing:
        raise UserError(
            f"the annotator left {len(missing)} images without a mask ({missing[0]} first): it "
            f"must write {folder / 'masks'}/<same stem>.png for each."
        )
    return True


def read_masks(folder: Path, height: int, width: int) -> ArtifactMap:
    """The masks in the images' order; `UserError` for a damaged one or one of another size."""
    maps = []
    for image in sorted((folder / "images").glob("*.png")):
        path = folder / "masks" / image.name
        mask = read_map(path)
        if mask.shape[-2:] != (height, width):
            raise UserError(
                f"{path} is {mask.shape[-2]}x{mask.shape[-1]} pixels, its image {height}x{width}: "
                "write masks of the images' size."
            )
        maps.append(mask)
    return torch.stack(maps)


def _missing(folder: Path) -> list[str]:
    images = sorted(path.name for path in (folder / "images").glob("*.png"))
    return [name for name in images if not (folder / "masks" / name).is_file()]


def _run(words: list[str], log: Path, stop: Callable[[], bool]) -> bool:
    """In a session of its own: a Ctrl-C is for us, and we end it ourselves."""
    with log.open("wb") as output:
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(
                f"the annotator {words[0]!r} cannot be started ({error.strerror}): check "
                "--annotator."
            ) from error
        try:
            while child.poll() is None:
                if stop():
                    return False
                time.sleep(POLL)
        finally:
            _end(child)
    if child.returncode:
        raise UserError(
            f"the annotator failed (exit {child.returncode}): {shlex.join(words)}; "
            f"its output is in {log}."
        )
    return True


def _end(child: subprocess.Popen) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
