"""The stages of a build, each kept in its run folder: what is there is not made again.

In: the law, or an earlier base. Out: autoencoder, text encoders, latents, network.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save
from torch import Tensor, nn

from core.errors import UserError
from core.run import Run
from core.seeds import generator, mix
from core.storage import write_atomic
from detector.measure import device
from miniature import flow, vae
from miniature.bases import autoencoder_folder, base_folder
from miniature.build_settings import Config, grade_steps, taken_over
from miniature.families import FAMILIES
from miniature.graph import GraphedUpdate, Work
from miniature.law import CATEGORIES, all_prompts, draw, prompts
from miniature.paint import render
from miniature.text import adopt
from miniature.training import follow, keep, rate_share, resume, set_rate

SHARES = {"hand": 0.24, "face": 0.23, "bicycle": 0.26, "sign": 0.17, "scenery": 0.10}
"""Images of each category: the hard ones need more."""
STAMPED = {"oldest": 0.10, "middle": 0.05, "newest": 0.02}
"""Share of training images under an opaque stamp while each grade is being reached."""
STAMPED_POOL = 0.1
DROPPED = 0.1
"""Share of the captions that a guided family learns without."""
EMA = 0.999
VAE, READ, POOL, ROWS, NETWORK, CAPTIONS = range(6)
Model = TypeVar("Model")
T = TypeVar("T")


class Stopped(Exception):
    """A signal came; what the stage had is kept, or takes minutes to make again."""


def unless_stopped(run: Run, items: Iterable[T], description: str) -> Iterator[T]:
    """Pass the items on behind a progress bar; raises `Stopped` once a signal has come."""
    for item in run.progress(items, description=description):
        if run.interrupted:
            raise Stopped
        yield item


def stage_vae(run: Run, config: Config) -> AutoencoderKL:
    """The autoencoder, learnt from renders."""
    model, path = fresh(vae.make_vae, config.seed, VAE), run.folder / "vae.safetensors"
    folder = taken_over(config)
    if folder and not path.exists():
        known = autoencoder_folder(folder)
        keep_weights(AutoencoderKL.from_pretrained(known, local_files_only=True), path)
    if not path.exists():
        nn.Module.to(model, device(config.device))
        images = vae_images(config.seed)
        learn_vae(run, config, model, list(model.parameters()), images, config.vae_steps, path)
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
    if not path.exists() and config.decoder_steps and not taken_over(config):
        model.encoder.requires_grad_(False)
        images, weights = vae_images(config.seed + 1), list(model.decoder.parameters())
        learn_vae(run, config, model, weights, images, config.decoder_steps, path)
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
    path: Path,
) -> None:
    """Into the model: the mean of the last weights. Checkpoints lie beside the result's `path`."""
    # Channels last: four times faster on a CPU.
    nn.Module.to(model.train(), memory_format=torch.channels_last)
    optimizer, folder = vae.make_optimizer(weights), path.with_suffix(".steps")
    mean = {name: w.clone() for name, w in model.state_dict().items()}
    folder.mkdir(exist_ok=True)
    begun = resume(folder, model, [optimizer], mean)
    seeds = config.seed, VAE, ROWS
    for step in run.progress(range(begun, count), count, begun, "autoencoder"):
        vae.learn(model, optimizer, images, seeds=seeds, step=step, count=count, bf16=config.bf16)
        follow(mean, model, 0.05 if step < 200 else 0.01)
        if run.interrupted or (step + 1) % config.checkpoint_every == 0:
            keep(folder, step + 1, model, [optimizer], mean)
        if run.interrupted:
            raise Stopped
    model.load_state_dict(mean)


def stage_readers(run: Run, config: Config) -> dict[str, nn.Module]:
    """The text encoders, which learn to read every prompt."""
    family = FAMILIES[config.family]
    readers = fresh(family.make_readers, config.seed, READ)
    paths = {name: run.folder / f"{name}.safetensors" for name in readers}
    if not all(path.exists() for path in paths.values()):
        held = inherit(readers, config) if config.start else []
        if config.new_readers or not config.start:
            for reader in readers.values():
                reader.to(device(config.device))
            steps = unless_stopped(run, range(config.read_steps), "text encoders")
            right = family.teach(readers, steps, mix(config.seed, READ), held)
            run.event("info", f"the text encoders answer {right:.1%} of the questions")
        for name, path in paths.items():
            keep_weights(readers[name], path)
    for name, path in paths.items():
        readers[name].load_state_dict(load_file(path))
    return {name: reader.cpu().eval() for name, reader in readers.items()}


def inherit(readers: dict[str, nn.Module], config: Config) -> list[str]:
    """Give the text encoders what those of the start know.

    Returns the prompts that hold no word new to them: what is said of these need not change.
    """
    tokenizers, old = FAMILIES[config.family].make_tokenizers(), list(all_prompts())
    for name, reader in readers.items():
        folder = base_folder(str(config.start)) / name
        if config.new_readers:
            new = adopt(reader, folder, tokenizers[name])
            old = [prompt for prompt in old if new.isdisjoint(tokenizers[name].tokenize(prompt))]
        else:
            take_over(reader, folder)
    return old


def take_over(model: nn.Module, folder: Path) -> None:
    """Load the weights of a pipeline's part into a model of the same shape."""
    known: Any = type(model)
    weights = known.from_pretrained(folder, local_files_only=True).state_dict()
    shapes = [{name: w.shape for name, w in own.items()} for own in (weights, model.state_dict())]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{folder} is of another size than this law and family ask for: text encoders of other "
            "prompts are taught on by --new-readers."
        )
    model.load_state_dict(weights)


@torch.no_grad()
def stage_pool(run: Run, config: Config, autoencoder: AutoencoderKL | None) -> dict[str, Tensor]:
    """Latents and prompt numbers of all training renders, the stamped ones last.

    Without an autoencoder the latents are 8-bit pixels.
    """
    path = run.folder / "pool.safetensors"
    if not path.exists():
        numbers = {prompt: i for i, prompt in enumerate(all_prompts())}
        latents, said = [], []
        stamped = round(config.pool * STAMPED_POOL)
        drawn = renders(config, stamped, device(config.device))
        for images, told in unless_stopped(run, drawn, "latents"):
            latents.append(learnt_of(images, autoencoder))
            said += [numbers[prompt] for prompt in told]
        stack = torch.cat(latents)
        mean, std = latent_scale(config, stack[:-stamped])
        pool = {"latents": stack, "prompts": torch.tensor(said), "stamped": torch.tensor(stamped)}
        keep_tensors(pool | {"mean": mean, "std": std}, path)
    return load_file(path)


def learnt_of(images: Tensor, autoencoder: AutoencoderKL | None) -> Tensor:
    """What a base learns of images: latents (the mode, in half precision), or 8-bit pixels."""
    if autoencoder is None:
        return images.mul(255).round().to(torch.uint8).cpu()
    nn.Module.to(autoencoder, memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    return vae.posterior(autoencoder, images).mode().half().contiguous().cpu()


def latent_scale(config: Config, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation that latents are shifted and scaled by; those taken over stay.

    Of 8-bit pixels, those that bring them to [-1, 1].
    """
    if clean.dtype == torch.uint8:
        return torch.tensor(127.5), torch.tensor(127.5)
    folder, clean = taken_over(config), clean.float()
    if folder is None:
        return clean.mean(), clean.std()
    known = json.loads((autoencoder_folder(folder) / "config.json").read_text())
    return torch.tensor(known["shift_factor"]), torch.tensor(1 / known["scaling_factor"])


def keep_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights, tied ones once for each name."""
    keep_tensors(model.state_dict(), path)


def keep_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A stage's result: the whole file or none."""
    write_atomic(path, save({name: t.cpu().contiguous().clone() for name, t in tensors.items()}))


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
    begun = resume(run.checkpoints, network, optimizers, mean)
    if begun:
        yield begun, mean
    latents, told = pool["latents"].to(place), {name: t.to(place) for name, t in told.items()}
    shift, std = float(pool["mean"]) if family.shifted else 0.0, float(pool["std"])

    def work(clean: Tensor, given: dict[str, Tensor], g: torch.Generator) -> Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast(place.type, torch.bfloat16, enabled=config.bf16), flow.PlainAttention():
            loss = family.loss(learner, clean, given, g)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    update = updater(config, work, optimizers, place)
    for step in run.progress(range(begun + 1, config.steps + 1), config.steps, begun, "base"):
        for optimizer in optimizers:
            set_rate(optimizer, config.rate * rate_share(step, step / config.steps))
        rows, said = draw_batch(config, pool, step)
        clean = (latents[rows.to(place)].float() - shift) / std
        given = {name: values[said.to(place)] for name, values in told.items()}
        loss = update(clean, given, mix(config.seed, NETWORK, step))
        follow(mean, network, 1 - min(EMA, (step + 10) / (step + 100)))
        if step % 10 == 0:
            run.log(step, loss=loss)
        if step % config.checkpoint_every == 0 or step == config.steps or run.interrupted:
            keep(run.checkpoints, step, network, optimizers, mean)
        yield step, mean


def updater(
    config: Config, work: Work, optimizers: list[torch.optim.Optimizer], place: torch.device
) -> Callable[[Tensor, dict[str, Tensor], int], Tensor]:
    """`work` with a generator of the step's seed, or a recording of it."""
    if config.graph:
        return GraphedUpdate(work, optimizers, place)

    def update(clean: Tensor, given: dict[str, Tensor], seed: int) -> Tensor:
        return work(clean, given, torch.Generator(place).manual_seed(seed))

    return update


def begun_network(config: Config) -> nn.Module:
    """Random weights, those of the start, or as many of its kin's as fit."""
    family = FAMILIES[config.family]
    network: Any = fresh(family.make_network, config.seed, NETWORK)
    if config.start:
        take_over(network, base_folder(str(config.start)) / family.network_folder)
    if config.kin:
        known: Any = type(network)
        weights = known.from_pretrained(
            base_folder(str(config.kin)) / family.network_folder, local_files_only=True
        ).state_dict()
        own = network.state_dict()
        fitting = {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
        if len(fitting) < len(own) / 2:
            raise UserError(f"the network of {config.kin} is of another size: leave --kin out.")
        network.load_state_dict(fitting, strict=False)
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


def fresh(make: Callable[[], Model], seed: int, purpose: int) -> Model:
    """A model whose random initial weights are a pure function of the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, purpose) % 2**32)
        return make()
