"""Build the miniature's base models from nothing but the law: autoencoder, readers, network.

    diffdoctor miniature build --out miniature/bases --run runs/build
    diffdoctor miniature build sdxl --out miniature/bases --run runs/build-sdxl

The run folder keeps every finished stage; the same command takes up where it stopped. Hours on
two cores, minutes on a GPU; nothing is downloaded.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import core.config
from core import checkpoint
from core.errors import UserError
from core.run import PAUSED, Run
from core.seeds import generator, mix
from detector.measure import device
from miniature import flow, vae
from miniature.bases import base_folder, save_older
from miniature.families import FAMILIES
from miniature.law import CATEGORIES, all_prompts, draw, prompts
from miniature.paint import render

SHARES = {"hand": 0.24, "face": 0.23, "bicycle": 0.26, "sign": 0.17, "scenery": 0.10}
"""Images of each category: the hard ones need more."""
STAMPED = {"oldest": 0.10, "middle": 0.05, "newest": 0.02}
"""Share of training images under an opaque stamp while each grade is being reached."""
STAMPED_POOL = 0.1
DROPPED = 0.1
"""Share of the captions that a guided family learns without."""
EMA = 0.999
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
VAE, READ, POOL, ROWS, NETWORK, CAPTIONS = range(6)
Model = TypeVar("Model")


class Config(core.config.Config):
    """What is built, and how long each part is trained."""

    family: Annotated[Literal["flux", "sdxl", "kolors"], tyro.conf.Positional] = "flux"
    """Architecture: `flux` gives three grades, the others one base each."""
    out: Path = Path("miniature/bases")
    """Where the pipeline folders go."""
    run: Path = Path("runs/build")
    """Run folder; the same command resumes it."""
    start: Path | None = None
    """Pipeline folder to go on from: its autoencoder, text encoders and network."""
    new_readers: bool = False
    """With `start`: text encoders anew, for other prompts."""
    autoencoder: Path | None = None
    """Pipeline folder whose autoencoder is taken over, and nothing else of it."""
    seed: int = 0
    vae_steps: int = Field(2600, ge=1)
    """Updates of the autoencoder, 16 images each."""
    decoder_steps: int = Field(1500, ge=0)
    """Further updates of the decoder alone, after the network is trained; none of one taken over.
    """
    read_steps: int = Field(400, ge=1)
    """Updates of the text encoders."""
    pool: int = Field(32_000, ge=100)
    """Renders whose latents the network learns from."""
    steps: int = Field(12_000, ge=4)
    """Updates until the newest grade."""
    oldest: float = Field(0.08, gt=0, lt=1)
    """Share of the updates after which the oldest grade is taken."""
    middle: float = Field(0.3, gt=0, lt=1)
    """Share of the updates after which the middle grade is taken."""
    batch: int = Field(64, ge=1)
    rate: float = Field(2e-3, gt=0)
    checkpoint_every: int = Field(250, ge=1)
    """Updates between two checkpoints of the network."""
    device: str = "auto"
    """`auto`, or a torch device."""
    threads: int = Field(2, ge=1)
    """CPU threads; 1 where anything else runs beside it."""
    bf16: bool = False
    """Autocast to bf16: faster where the CPU has units for it, else slower."""
    compile: bool = False
    """Compile the network (`torch.compile`): a seventh faster on a CPU; wants a C++ compiler."""


def main(config: Config) -> int:
    for given in (config.start, config.autoencoder):
        if given:
            base_folder(str(given))  # refuses what is no pipeline folder
    if config.start and config.autoencoder:
        raise UserError("start already brings its autoencoder: leave --autoencoder out.")
    torch.set_num_threads(config.threads)
    place = device(config.device)
    torch.set_float32_matmul_precision("high")  # Muon's products, on a GPU
    with Run.start(config, config.run, "build", may_change=MAY_CHANGE) as run:
        autoencoder = stage_vae(run, config)
        nn.Module.to(autoencoder, place)
        readers = stage_readers(run, config)
        pool = stage_pool(run, config, autoencoder)
        told = FAMILIES[config.family].conditioning(readers)
        for step, network in stage_network(run, config, pool, told):
            for grade, last in grade_steps(config).items():
                path = run.folder / f"{grade}.safetensors"
                if step == last or step > last and not path.exists():  # the steps may have changed
                    save_file(network, path)
            if run.interrupted:
                return PAUSED
        decoder = stage_decoder(run, config, autoencoder, pool)
        publish(run, config, decoder.cpu(), readers)
    return 0


def grade_steps(config: Config) -> dict[str, int]:
    """The update after which each grade is taken; three different ones, however few there are."""
    if config.family != "flux":
        return {"newest": config.steps}
    oldest = max(1, round(config.oldest * config.steps))
    middle = max(oldest + 1, round(config.middle * config.steps))
    return {"oldest": oldest, "middle": middle, "newest": config.steps}


def taken_over(config: Config) -> Path | None:
    """The pipeline folder that the autoencoder comes from."""
    given = config.start or config.autoencoder
    return base_folder(str(given)) if given else None


def stage_vae(run: Run, config: Config) -> AutoencoderKL:
    """The autoencoder, learnt from renders."""
    model, path = fresh(vae.make_vae, config.seed, VAE), run.folder / "vae.safetensors"
    folder = taken_over(config)
    if folder and not path.exists():
        keep_weights(AutoencoderKL.from_pretrained(folder / "vae"), path)
    if not path.exists():
        nn.Module.to(model, device(config.device))
        images = vae_images(config.seed)
        learn_vae(run, config, model, list(model.parameters()), images, config.vae_steps)
        keep_weights(model, path)
    model.load_state_dict(load_file(path))
    return model.eval()


def stage_decoder(
    run: Run, config: Config, model: AutoencoderKL, pool: dict[str, Tensor]
) -> AutoencoderKL:
    """The decoder alone, polished: the latents that the base models know stay what they are."""
    path = run.folder / "decoder.safetensors"
    model.register_to_config(
        shift_factor=round(float(pool["mean"]), 6), scaling_factor=round(1 / float(pool["std"]), 6)
    )
    if not path.exists() and config.decoder_steps and not config.autoencoder:
        model.encoder.requires_grad_(False)
        images, weights = vae_images(config.seed + 1), list(model.decoder.parameters())
        learn_vae(run, config, model, weights, images, config.decoder_steps)
        keep_weights(model, path)
    if path.exists():
        model.load_state_dict(load_file(path))
    return model.eval()


def vae_images(seed: int) -> Tensor:
    """8,000 images for the autoencoder, 8-bit."""
    parts = [vae.training_batch(500, seed, VAE, i) for i in range(16)]
    return torch.cat([part.mul(255).round().to(torch.uint8) for part in parts])


def learn_vae(
    run: Run,
    config: Config,
    model: AutoencoderKL,
    weights: list[nn.Parameter],
    images: Tensor,
    count: int,
) -> None:
    steps = run.progress(range(count), count, description="autoencoder")
    vae.learn(model, weights, images, (config.seed, VAE, ROWS), steps, count, config.bf16)


def stage_readers(run: Run, config: Config) -> dict[str, nn.Module]:
    """The text encoders, which learn to read every prompt."""
    family = FAMILIES[config.family]
    readers = fresh(family.make_readers, config.seed, READ)
    paths = {name: run.folder / f"{name}.safetensors" for name in readers}
    if not all(path.exists() for path in paths.values()):
        if config.start and not config.new_readers:
            for name, reader in readers.items():
                known: Any = type(reader)
                readers[name] = known.from_pretrained(base_folder(str(config.start)) / name)
        else:
            for reader in readers.values():
                reader.to(device(config.device))
            right = family.teach(readers, config.read_steps, mix(config.seed, READ))
            run.event("info", f"the text encoders answer {right:.1%} of the questions")
        for name, path in paths.items():
            keep_weights(readers[name], path)
    for name, path in paths.items():
        readers[name].load_state_dict(load_file(path))
    return {name: reader.cpu().eval() for name, reader in readers.items()}


@torch.no_grad()
def stage_pool(run: Run, config: Config, autoencoder: AutoencoderKL) -> dict[str, Tensor]:
    """Latents and prompt numbers of all training renders, the stamped ones last."""
    path = run.folder / "pool.safetensors"
    if not path.exists():
        numbers = {prompt: i for i, prompt in enumerate(all_prompts())}
        latents, said = [], []
        stamped = round(config.pool * STAMPED_POOL)
        nn.Module.to(autoencoder, memory_format=torch.channels_last)
        drawn = renders(config, stamped, autoencoder.device)
        for images, told in run.progress(drawn, description="latents"):
            images = images.contiguous(memory_format=torch.channels_last)
            mode = vae.posterior(autoencoder, images).mode()
            latents.append(mode.half().contiguous().cpu())
            said += [numbers[prompt] for prompt in told]
        stack = torch.cat(latents)
        mean, std = latent_scale(config, stack[:-stamped].float())
        pool = {"latents": stack, "prompts": torch.tensor(said), "stamped": torch.tensor(stamped)}
        save_file(pool | {"mean": mean, "std": std}, path)
    return load_file(path)


def latent_scale(config: Config, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation that latents are shifted and scaled by; those taken over stay."""
    folder = taken_over(config)
    if folder is None:
        return clean.mean(), clean.std()
    known = json.loads((folder / "vae/config.json").read_text())
    return torch.tensor(known["shift_factor"]), torch.tensor(1 / known["scaling_factor"])


def keep_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights, tied ones once for each name."""
    save_file({name: w.cpu().contiguous().clone() for name, w in model.state_dict().items()}, path)


def renders(
    config: Config, stamped: int, place: torch.device
) -> Iterator[tuple[Tensor, list[str]]]:
    """Batches of renders with their prompts; after the clean ones, the stamped."""
    for kind, total in enumerate((config.pool, stamped)):
        counts = {name: round(total * SHARES[name]) for name in CATEGORIES}
        counts["scenery"] += total - sum(counts.values())
        for number, (name, count) in enumerate(counts.items()):
            for at in range(0, count, 125):
                g = generator(config.seed, POOL, kind, number, at)
                scenes = draw(name, min(125, count - at), g)
                with place:
                    images = render(scenes.to(place)).clamp(0, 1)
                shown = flow.stamp(images.cpu(), g).to(place) if kind else images
                yield shown, prompts(scenes)


def stage_network(
    run: Run, config: Config, pool: dict[str, Tensor], told: dict[str, Tensor]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Train the base; after every step, its number and the averaged weights."""
    family, place = FAMILIES[config.family], device(config.device)
    network = begun_network(config).to(place)
    optimizers = flow.optimizers(network, config.rate)
    learner: Any = torch.compile(network) if config.compile else network
    mean = {name: w.detach().clone() for name, w in network.state_dict().items()}
    begun = resume(run, network, optimizers, mean)
    latents, told = pool["latents"].to(place), {name: t.to(place) for name, t in told.items()}
    for step in run.progress(range(begun + 1, config.steps + 1), config.steps, begun, "base"):
        for optimizer in optimizers:
            share = rate_share(step, step / config.steps)
            optimizer.param_groups[0]["lr"] = config.rate * share
        rows, said = draw_batch(config, pool, step)
        shift = 0.0 if family.guided else pool["mean"].to(place)
        clean = (latents[rows.to(place)].float() - shift) / pool["std"].to(place)
        given = {name: values[said.to(place)] for name, values in told.items()}
        g = torch.Generator(place).manual_seed(mix(config.seed, NETWORK, step))
        with torch.autocast(place.type, torch.bfloat16, enabled=config.bf16), flow.PlainAttention():
            loss = family.loss(learner, clean, given, g)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        follow(mean, network, 1 - min(EMA, (step + 10) / (step + 100)))
        if step % 10 == 0:
            run.log(step, loss=loss.detach())
        if step % config.checkpoint_every == 0 or step == config.steps or run.interrupted:
            keep(run, step, network, optimizers, mean)
        yield step, mean


def begun_network(config: Config) -> nn.Module:
    """Random weights, or those of the start."""
    family = FAMILIES[config.family]
    network: Any = fresh(family.make_network, config.seed, NETWORK)
    if config.start:
        folder = "transformer" if config.family == "flux" else "unet"
        known = type(network).from_pretrained(base_folder(str(config.start)) / folder)
        network.load_state_dict(known.state_dict())
    return network


def draw_batch(config: Config, pool: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
    """Rows of the pool, and the rows of the conditioning that go with them."""
    marked = STAMPED[next(g for g, last in grade_steps(config).items() if step <= last)]
    sizes = len(pool["latents"]), int(pool["stamped"])
    rows = flow.draw_rows(*sizes, marked, config.batch, config.seed, ROWS, step)
    said = pool["prompts"][rows]
    if FAMILIES[config.family].guided:
        odds = torch.rand(len(said), generator=generator(config.seed, CAPTIONS, step))
        said = said.where(odds >= DROPPED, len(all_prompts()))  # the row of the empty prompt
    return rows, said


def follow(mean: dict[str, Tensor], network: nn.Module, share: float) -> None:
    """Move the average a share of the way to the weights."""
    now = network.state_dict()
    lerp: Any = torch._foreach_lerp_  # pyright: ignore
    lerp(list(mean.values()), [now[name] for name in mean], share)


def rate_share(step: int, share: float) -> float:
    """Warm up over 200 steps, hold, and from .6 on fall in a line to 2 %."""
    return min(1.0, step / 200) * min(1.0, max(0.02, (1 - share) / 0.4))


def keep(
    run: Run,
    step: int,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    mean: dict[str, Tensor],
) -> None:
    tensors, state = {"network": network.state_dict(), "mean": mean}, {}
    for i, optimizer in enumerate(optimizers):
        tensors[f"optimizer{i}"], state[str(i)] = checkpoint.optimizer_tensors(optimizer)
    checkpoint.save(run.checkpoints, step, tensors, state)


def resume(
    run: Run,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    mean: dict[str, Tensor],
) -> int:
    """Load the newest checkpoint into everything given; the number of steps done."""
    found = checkpoint.load_newest(run.checkpoints)
    if found is None:
        return 0
    network.load_state_dict(found.tensors["network"])
    for name, average in mean.items():
        average.copy_(found.tensors["mean"][name])
    for i, optimizer in enumerate(optimizers):
        checkpoint.restore_optimizer(optimizer, found.tensors[f"optimizer{i}"], found.state[str(i)])
    return found.step


def publish(
    run: Run, config: Config, autoencoder: AutoencoderKL, readers: dict[str, nn.Module]
) -> None:
    """Write the pipeline folders."""
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


def fresh(make: Callable[[], Model], seed: int, purpose: int) -> Model:
    """A model whose random initial weights are a pure function of the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, purpose) % 2**32)
        return make()


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor miniature build")
