"""Sound images and a base model in; the same images as the model would finish them out.

    diffdoctor redraw --base BASE --images photographs --out redrawn

OUT/images/*.png, OUT/references/*.png (the originals at the same size), OUT/prompts.jsonl and an
empty OUT/masks/; once that is painted, `detector train --alignment-data OUT` reads the folder.

Noised to the level of a late enough step and drawn to the end (SDEdit, Meng et al. 2022, arXiv
2108.01073), an image keeps its content and gains the model's own artifacts. Labelled, it stands
beside the original it was made from: a broken image whose mend is known.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from tqdm import tqdm

import core.config
from base_models.load import load_base
from base_models.sizes import check_steps, checked_size, of_size, usual_steps
from core.contracts import DiffusionModel, Images
from core.errors import UserError
from core.images import round_to_8bit, write_image
from core.processes import this_process
from core.seeds import mix
from core.storage import write_atomic
from treat.offline import RealImages, fit, read_offline

REDRAW = 61
"""What a draw is for; see `core.seeds`."""
NOTE = "redraw.json"


class Config(core.config.Config):
    """Which images, redrawn by what, from which step on."""

    base: str
    """Pipeline folder or Hub id of the base model."""
    images: Path
    """Sound images with captions: a folder, or shards."""
    out: Path
    """Folder for images/, references/ and prompts.jsonl; the same command goes on in it."""
    limit: int | None = Field(None, ge=1)
    """Use at most so many images."""
    height: int | None = Field(None, ge=8)
    """In pixels. None: the base's own. Images are scaled and cut to it."""
    width: int | None = Field(None, ge=8)
    """In pixels. None: the base's own."""
    sampling_steps: int | None = Field(None, ge=1)
    """Of a whole drawing: 4 of FLUX schnell, 28 of dev and 25 of any other, unless given."""
    start: int | None = Field(None, ge=0)
    """The step at which images enter: 0 leaves little of them, the last one changes little. Half of
    the steps where none is said."""
    batch: int = Field(8, ge=1)
    """Images redrawn at once."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base's weights."""
    seed: int = Field(0, ge=0)
    """Of the noise under which images enter."""


def main(config: Config) -> None:
    """Redraw what is not there yet."""
    size = checked_size(config.base, config.height, config.width)
    steps = config.sampling_steps or usual_steps(config.base)
    check_steps(config.base, steps)
    start = steps // 2 if config.start is None else config.start
    if start >= steps:
        raise UserError(f"start is {start} of {steps} sampling_steps: give a smaller one.")
    config = of_size(config, size, sampling_steps=steps, start=start)
    real = read_offline(config.images, config.limit)
    if not len(real):
        raise UserError(f"{config.images} holds no images: name a folder that does.")
    note = check_folder(config, real)
    names = [f"{i:06d}.png" for i in range(len(real))]
    missing = [i for i, name in enumerate(names) if not (config.out / "images" / name).is_file()]
    if not missing:
        return
    device, dtype = this_process().device or "cpu", getattr(torch, config.base_dtype)
    model = load_base(config.base, device, dtype)
    begin(config.out, note, names, real.captions)
    for at in tqdm(range(0, len(missing), config.batch), "redraw"):
        rows = missing[at : at + config.batch]
        sound = torch.cat([fit(real.picture(i), *size) for i in rows])
        seeds = [mix(config.seed, REDRAW, i) % 2**32 for i in rows]
        said = [real.captions[i] for i in rows]
        drawn = redraw(model, sound, said, seeds, steps=steps, start=start)
        for i, reference, image in zip(rows, sound, drawn, strict=True):
            write_image(config.out / "references" / names[i], reference)
            write_image(config.out / "images" / names[i], image)


def check_folder(config: Config, real: RealImages) -> bytes:
    """What the folder's note says, or will say; `UserError` where it holds anything else."""
    said = config.model_dump(mode="json", exclude={"out", "batch", "images"})
    note = (json.dumps({**said, "images": real.name}, indent=2) + "\n").encode()
    path = config.out / NOTE
    if path.is_file():
        if path.read_bytes() != note:
            raise UserError(f"{config.out} holds images of other settings: give another --out.")
    elif config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"{config.out} is not empty and was not redrawn: give another --out.")
    return note


def begin(out: Path, note: bytes, names: Sequence[str], captions: Sequence[str]) -> None:
    """The note first: a folder that has it may be gone on in."""
    lines = [{"file": name, "prompt": said} for name, said in zip(names, captions, strict=True)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / NOTE, note)
        for name in ("images", "references", "masks"):
            (out / name).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): give another --out.") from error
    write_atomic(out / "prompts.jsonl", "".join(json.dumps(one) + "\n" for one in lines).encode())


@torch.no_grad()
def redraw(
    model: DiffusionModel,
    images: Images,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    start: int,
) -> Images:
    """One batch, the sampling entered at step `start` of `steps`; 8-bit, on the CPU.

    At step 0 little of the image is left, at the last one little is changed.
    """
    height, width = images.shape[-2:]
    schedule, text = model.schedule(steps, height, width), model.encode_prompts(prompts)
    noise = model.noise(seeds, height, width)
    latents = model.encode(images.to(noise.device))
    latents = model.noised(latents, start, schedule, noise)
    for i in range(start, steps):
        latents = model.step(latents, i, schedule, text)
    return round_to_8bit(model.decode(latents)).cpu()


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor redraw")
