"""Images, masks and a base without prompts in; the images with what was masked drawn anew out.

    diffdoctor inpaint --base runs/refined/pipeline --images photographs --masks masks --out runs/in

RePaint (`treat.repaint`), at evaluation: any base that draws without being asked, a self-refined
one as well. OUT/images/*.png, OUT/sheet.png and OUT/summary.json. What is black in a mask comes out
as it went in, to the bit. The same command goes on where it stopped.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

import core.config
from base_models.load import FAMILIES, check_base, load_base, locate
from base_models.sizes import check_size, check_steps
from core.contracts import DiffusionModel, Images
from core.errors import UserError
from core.heatmap import read_map
from core.image_files import list_images
from core.images import contact_sheet, read_image, read_images, round_to_8bit, write_image
from core.inputs import hold
from core.memory import in_use
from core.run import PAUSED, Run
from core.seeds import mix
from detector.measure import device
from treat.inputs import of_base, of_files
from treat.repaint import REPAINT, repaint, walk
from treat.step import Chain

GRAY = 0.5
"""What the sheet shows where a mask is, and what stands for an image that is hidden whole."""


class Config(core.config.Config):
    """Draw the masked parts of images anew with RePaint."""

    base: str
    """Pipeline folder of a base without prompts: DDPM, Improved DDPM, LDM, self-refined or not."""
    images: Path
    """An image or a folder of them, all of one size that the base can draw."""
    masks: Path
    """White is drawn anew, black is known: a folder with a mask of each image's name (any ending),
    or one file for all."""
    out: Path
    """Run folder; the same command again takes up where it stopped."""
    n: int | None = Field(default=None, ge=1)
    """Use at most so many images."""
    sampling_steps: int = Field(default=250, ge=2)
    """Levels of noise; the paper's 250."""
    jump_length: int = Field(default=10, ge=1)
    """Levels that a resampling goes back by."""
    resamples: int = Field(default=10, ge=1)
    """r: how often each stretch is walked; 1 only blends."""
    eta: float = Field(default=1.0, ge=0, le=1)
    """Share of each step's noise that is drawn anew: 1 is DDPM's step (the paper's), 0 DDIM's."""
    seed: int = 0
    """Image i is drawn with seed hash(seed, i)."""
    batch: int = Field(default=8, ge=1)
    """Images drawn at once."""
    shown: int = Field(default=12, ge=0)
    """Images on the sheet: always the first ones, never chosen."""
    device: str = "auto"
    """`auto`, or a torch device."""


def main(config: Config) -> int | None:
    """Check, draw what is missing, show."""
    files = list_images(config.images)[: config.n]
    masks = masks_of(config.masks, files)
    height, width = check(config, files, masks)
    path = walk(config.sampling_steps, config.jump_length, config.resamples)
    place = device(config.device)
    with Run.start(config, config.out, "inpaint") as run:
        made = [run.folder / "images" / f"{file.stem}.png" for file in files]
        made[0].parent.mkdir(exist_ok=True)
        found = {"images": of_files(files[0].parent, files)}
        found["masks"] = of_files(masks[0].parent, dict.fromkeys(masks))
        hold(run, found | {"base": of_base(config.base)}, begun=any(map(Path.exists, made)))
        left = [i for i, file in enumerate(made) if not file.exists()]
        model = load_base(config.base).to(place) if left else None
        batches = [left[at : at + config.batch] for at in range(0, len(left), config.batch)]
        total = -(-len(files) // config.batch)
        for rows in run.progress(batches, total, total - len(batches), "inpaint"):
            if run.interrupted:
                return PAUSED
            assert model is not None  # something is left
            begun = time.perf_counter()
            seeds = [mix(config.seed, REPAINT, i) % 2**32 for i in rows]
            images, holes = read_images([files[i] for i in rows]), read([masks[i] for i in rows])
            schedule = model.schedule(config.sampling_steps, height, width)
            chain = Chain(model, schedule, model.encode_prompts([""] * len(rows)))
            drawn = fill(chain, images.to(place), holes.to(place), seeds, path, config.eta)
            for i, image in zip(rows, drawn, strict=True):
                write_image(made[i], image)
            spent = (time.perf_counter() - begun) / len(rows)
            run.log(rows[-1] + 1, seconds_an_image=spent, **in_use(place))
        if config.shown:
            shown = [one[: config.shown] for one in (files, masks, made)]
            write_image(run.folder / "sheet.png", sheet(*shown))
        calls = sum(b > a for a, b in zip(path, path[1:], strict=False))
        run.summary({"n": len(files), "steps_an_image": calls, "images": "images"})
        run.event("info", f"images/ and summary.json are in {run.folder}")
    return None


def masks_of(masks: Path, files: Sequence[Path]) -> list[Path]:
    """Of each image; `UserError` where one has none, or several."""
    if masks.is_file():
        return [masks] * len(files)
    named: dict[str, list[Path]] = defaultdict(list)
    for mask in list_images(masks):
        named[mask.stem].append(mask)
    for file in files:
        if len(named[file.stem]) != 1:
            many = "several masks" if named[file.stem] else "no mask"
            raise UserError(f"{masks} has {many} for {file.name}: give each image one of its name.")
    return [named[file.stem][0] for file in files]


def check(config: Config, files: Sequence[Path], masks: Sequence[Path]) -> tuple[int, int]:
    """Height and width of all; `UserError` for what cannot work, before anything heavy."""
    family = FAMILIES[check_base(locate(config.base, weights=False), weights=False)]
    if family.prompted:
        raise UserError(f"{config.base} draws what it is asked for: inpaint takes others only.")
    if len({file.stem for file in files}) < len(files):
        raise UserError(f"{config.images} holds two images of one name: rename one.")
    first = read_image(files[0]).shape[-2:]
    for file, mask in zip(files, masks, strict=True):
        for one, side in ((file, read_image(file).shape[-2:]), (mask, read_map(mask).shape[-2:])):
            if side != first:
                raise UserError(
                    f"{one} has {side[1]}x{side[0]} pixels, {files[0].name} {first[1]}x{first[0]}: "
                    "bring images and masks to one size."
                )
    check_size(config.base, first[0], first[1])
    check_steps(config.base, config.sampling_steps)
    return first[0], first[1]


def read(masks: Sequence[Path]) -> Float[Tensor, "b 1 h w"]:
    return (torch.stack([read_map(mask) for mask in masks]) > 0.5).float()


def fill(
    chain: Chain,
    images: Images,
    masks: Float[Tensor, "b 1 h w"],
    seeds: Sequence[int],
    path: Sequence[int],
    eta: float,
) -> Images:
    """The images with what is masked drawn, of which nothing is seen.

    A cell of latents is drawn where any pixel of it is masked, and so are its neighbours: an
    autoencoder reads beyond a cell.
    """
    model: DiffusionModel = chain.model
    known = model.encode(surrounded(images, 1 - masks))
    drawn = F.adaptive_max_pool2d(masks, known.shape[-2:])
    if known.shape[-2:] != images.shape[-2:]:
        drawn = F.max_pool2d(drawn, 3, stride=1, padding=1)
    latents = repaint(chain, known, drawn > 0, seeds, path, eta)
    with torch.no_grad():
        found = round_to_8bit(chain.decode(latents))
    return torch.where(masks > 0, found, images).cpu()


def surrounded(images: Images, known: Float[Tensor, "b 1 h w"]) -> Images:
    """The images with what is not `known` (0) as the mean of what lies nearest around it.

    From coarse to fine (pull-push; Gortler et al., The Lumigraph, 1996); grey where nothing is
    known.
    """
    if known.min() > 0:
        return images
    if known.shape[-1] == known.shape[-2] == 1:
        return torch.where(known > 0, images, GRAY)
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    means = F.avg_pool2d(images * known, 2, ceil_mode=True) / share.clamp_min(1e-6)
    coarse = surrounded(means, (share > 0).float())
    around = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear")
    return torch.where(known > 0, images, around)


def sheet(files: Sequence[Path], masks: Sequence[Path], made: Sequence[Path]) -> Tensor:
    """A row for each image: itself, what was known of it, what came out."""
    rows = []
    for before, hole, after in zip(read_images(files), read(masks), read_images(made), strict=True):
        rows.append([before, before * (1 - hole) + GRAY * hole, after])
    return contact_sheet(rows, columns=("image", "known", "inpainted"))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor inpaint")
