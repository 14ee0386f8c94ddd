"""Every setting of a build, with what cannot go together, checked before anything is made."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

import core.config
from base_models.load import check_base
from core.errors import UserError
from detector.measure import device
from miniature import vae
from miniature.bases import autoencoder_folder, base_folder
from miniature.families import FAMILIES


class Config(core.config.Config):
    """A base model: hours on two cores, minutes on a GPU. The same command resumes."""

    family: Annotated[Literal["flux", "sdxl", "kolors", "ddpm", "ldm"], tyro.conf.Positional] = (
        "flux"
    )
    """Architecture: `flux` gives three grades, the others one base each. `ddpm` (pixels) and `ldm`
    read no prompt."""
    out: Path = Path("runs/bases")
    """Where the pipeline folders go; what ships is in miniature/bases."""
    run: Path = Path("runs/build")
    """Run folder, one for each family."""
    start: Path | None = None
    """A shipped base's name or a pipeline folder of the same family to go on from: its autoencoder,
    text encoders and network."""
    new_readers: bool = False
    """With `start`: teach its text encoders on, because the law's prompts have changed since."""
    autoencoder: Path | None = None
    """The same, of any family, of which only the autoencoder is taken over: `newest` for sdxl,
    kolors and ldm, so that all share one."""
    kin: Path | None = None
    """sdxl and kolors: a base of the other, by name or folder. The network begins from its weights
    where name and shape are the same: all but what reads the text."""
    seed: int = 0
    """Of weights, renders and noise."""
    vae_steps: int = Field(2600, ge=1)
    """Updates of the autoencoder, 16 images each; none of one taken over."""
    decoder_steps: int = Field(1500, ge=0)
    """Further updates of the decoder alone, after the network's; none of one taken over."""
    read_steps: int = Field(400, ge=1)
    """Updates of the text encoders; none of those of a start."""
    pool: int = Field(32_000, ge=100)
    """Renders whose latents the network learns from."""
    steps: int = Field(12_000, ge=4)
    """Updates of the network."""
    oldest: float = Field(0.08, gt=0, lt=1)
    """flux only: share of the updates after which the oldest grade is taken."""
    middle: float = Field(0.3, gt=0, lt=1)
    """flux only: share of the updates after which the middle grade is taken."""
    batch: int = Field(64, ge=1)
    """Latents of an update."""
    rate: float = Field(2e-3, gt=0)
    """Highest learning rate."""
    checkpoint_every: int = Field(250, ge=1)
    """Updates between two checkpoints of the network."""
    device: str = "auto"
    """`auto`, or a torch device."""
    threads: int = Field(2, ge=1)
    """CPU threads; 1 where anything else runs beside it."""
    bf16: bool = False
    """Autocast to bf16: faster where the device has units for it (on a CPU AVX512-BF16 or AMX),
    else ten times slower."""
    compile: bool = False
    """Compile the network (`torch.compile`): a seventh faster on a CPU; wants a C++ compiler."""
    graph: bool = False
    """Record an update as a CUDA graph and replay it: a GPU need not wait for the host."""


def check(config: Config) -> None:
    """Refuse what cannot be built, before anything is made."""
    if FAMILIES[config.family].pixels and config.autoencoder:
        raise UserError(f"{config.family} draws pixels: leave --autoencoder out.")
    if config.start and config.autoencoder:
        raise UserError("start already brings its autoencoder: leave --autoencoder out.")
    if config.new_readers and not config.start:
        raise UserError(
            "without --start the text encoders are new anyway: leave --new-readers out."
        )
    if config.graph and device(config.device).type != "cuda":
        raise UserError("--graph is for a CUDA GPU, and none is used here: leave it out.")
    steps = list(grade_steps(config).values())
    if steps != sorted(set(steps)):
        raise UserError(
            "the grades are taken one after the other: --oldest must be less than --middle, and "
            "--steps enough for both."
        )
    for given in (config.start, config.autoencoder):
        if given and not FAMILIES[config.family].pixels:
            check_autoencoder(base_folder(str(given)))
    if config.start:
        found = check_base(base_folder(str(config.start)))
        if found != FAMILIES[config.family].pipeline:
            raise UserError(
                f"{config.start} is a {found}, no {config.family}: build its own family, or take "
                "over its autoencoder alone (--autoencoder)."
            )
    check_kin(config)
    check_out(config)


def check_kin(config: Config) -> None:
    """The two families with a UNet can begin from one another."""
    if config.kin is None:
        return
    if config.start:
        raise UserError("start already brings its network: leave --kin out.")
    found = check_base(base_folder(str(config.kin)))
    unets = {FAMILIES["sdxl"].pipeline, FAMILIES["kolors"].pipeline}
    if not {found, FAMILIES[config.family].pipeline} <= unets:
        raise UserError(f"{config.kin} is a {found}, no kin of {config.family}: leave --kin out.")


def check_out(config: Config) -> None:
    """The folder of the pipelines is made now, and none is overwritten: hours would be lost."""
    folder, resumed = config.out, (config.run / "run.json").exists()
    for name in grade_steps(config) if config.family == "flux" else (config.family,):
        if (folder / name).exists() and not resumed:
            raise UserError(f"{folder} holds a base {name} already: name another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder} ({error.strerror}): name another --out.") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to: name another --out.")


def check_autoencoder(folder: Path) -> None:
    """Other latents than the miniature's fit no network of it."""
    config = autoencoder_folder(folder) / "config.json"
    known = json.loads(config.read_text()) if config.is_file() else {}
    ours = dict(vae.make_vae().config)
    if any(known.get(name) != ours[name] for name in ("latent_channels", "layers_per_block")):
        raise UserError(f"the autoencoder of {folder} is none of the miniature's: name another.")


def grade_steps(config: Config) -> dict[str, int]:
    """The update after which each grade is taken."""
    if config.family != "flux":
        return {"newest": config.steps}
    shares = {"oldest": config.oldest, "middle": config.middle, "newest": 1.0}
    return {grade: max(1, round(share * config.steps)) for grade, share in shares.items()}


def taken_over(config: Config) -> Path | None:
    """The pipeline folder that the autoencoder comes from."""
    given = config.start or config.autoencoder
    return base_folder(str(given)) if given else None
