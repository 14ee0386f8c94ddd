"""Build the miniature's base models from nothing but the law: autoencoder, readers, network.

    diffdoctor miniature build --out runs/bases --run runs/build
    diffdoctor miniature build sdxl --out runs/bases --run runs/build-sdxl
    diffdoctor miniature build ldm --autoencoder newest --out runs/bases --run runs/build-ldm
    diffdoctor miniature build ddpm --out runs/bases --run runs/build-ddpm

The run folder keeps every finished stage, and checkpoints of autoencoder and network; the same
command takes up where it stopped. Hours on two cores, minutes on a GPU; nothing is downloaded.
"""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file
from torch import nn

import core.config
from core.run import PAUSED, Run
from detector.measure import device
from miniature import stages
from miniature.bases import save_older
from miniature.build_settings import Config, check, grade_steps
from miniature.families import FAMILIES

MAY_CHANGE = {
    "run",
    "threads",
    "device",
    "steps",
    "bf16",
    "compile",
    "decoder_steps",
    "checkpoint_every",
}
"""Settings that a resumed build may change."""


def main(config: Config) -> int:
    check(config)
    torch.set_num_threads(config.threads)
    place = device(config.device)
    if place.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, for Muon's products above all
    with Run.start(config, config.run, "build", may_change=MAY_CHANGE) as run:
        try:
            make(run, config, place)
        except stages.Stopped:
            run.event("info", "stopped: the same command goes on")
            return PAUSED
    return 0


def make(run: Run, config: Config, place: torch.device) -> None:
    """All stages in order; raises `Stopped` where a signal came."""
    pixels = FAMILIES[config.family].pixels
    autoencoder = None if pixels else stages.stage_vae(run, config)
    if autoencoder is not None:
        nn.Module.to(autoencoder, place)
    readers = stages.stage_readers(run, config)
    pool = stages.stage_pool(run, config, autoencoder)
    told = FAMILIES[config.family].conditioning(readers)
    for step, network in stages.stage_network(run, config, pool, told):
        for grade, last in grade_steps(config).items():
            path = run.folder / f"{grade}.safetensors"
            # Or passed by: where the steps were changed, or a stop came between the two.
            if step == last or step > last and not path.exists():
                stages.keep_tensors(network, path)
        if run.interrupted:
            raise stages.Stopped
    if autoencoder is not None:
        autoencoder = stages.stage_decoder(run, config, autoencoder, pool).cpu()
    publish(run, config, autoencoder, readers)


def publish(
    run: Run, config: Config, autoencoder: AutoencoderKL | None, readers: dict[str, nn.Module]
) -> None:
    """Write the pipeline folders; without an autoencoder, of a base that draws pixels."""
    family = FAMILIES[config.family]
    network: Any = family.make_network()
    for grade in reversed(grade_steps(config)):  # the newest first: the others share its parts
        network.load_state_dict(load_file(run.folder / f"{grade}.safetensors"))
        if grade == "newest":
            folder = config.out / (grade if config.family == "flux" else config.family)
            family.save(folder, network, autoencoder, readers)
        else:
            save_older(config.out / grade, network, config.out / "newest")
    run.event("info", f"{', '.join(grade_steps(config))} of {config.family} are in {config.out}")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor miniature build")
