"""Build the miniature's base models from nothing but the law: autoencoder, readers, three grades.

    diffdoctor miniature build --out miniature/bases --run runs/build

The run folder keeps every finished stage; the same command takes up where it stopped. Hours on
two cores; nothing is downloaded.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

import core.config
from core import checkpoint
from core.run import PAUSED, Run
from core.seeds import generator, mix
from miniature import flow, text, vae
from miniature.bases import base_folder, save_newest, save_older
from miniature.law import CATEGORIES, all_prompts, draw, prompts
from miniature.paint import render

SHARES = {"hand": 0.24, "face": 0.23, "bicycle": 0.26, "sign": 0.17, "scenery": 0.10}
"""Images of each category: the hard ones need more."""
STAMPED = {"oldest": 0.10, "middle": 0.05, "newest": 0.02}
"""Share of training images under an opaque stamp while each grade is being reached."""
STAMPED_POOL = 0.1
EMA = 0.999
MAY_CHANGE = {"threads", "steps", "bf16", "compile", "decoder_steps"}
"""Settings that a resumed build may change."""
VAE, READ, POOL, ROWS, FLOW = range(5)
Model = TypeVar("Model", bound=torch.nn.Module)


class Config(core.config.Config):
    """How long each part is trained."""

    out: Path = Path("miniature/bases")
    """Where the pipeline folders of the three grades go."""
    run: Path = Path("runs/build")
    """Run folder; the same command resumes it."""
    start: Path | None = None
    """Pipeline folder to go on from: its autoencoder, text encoders and transformer."""
    seed: int = 0
    vae_steps: int = Field(2600, ge=1)
    """Updates of the autoencoder, 16 images each."""
    decoder_steps: int = Field(1500, ge=0)
    """Further updates of the decoder alone, after the base models are trained."""
    read_steps: int = Field(400, ge=1)
    """Updates of the text encoders."""
    pool: int = Field(32_000, ge=100)
    """Renders whose latents the base models learn from."""
    steps: int = Field(12_000, ge=4)
    """Updates until the newest grade."""
    oldest: float = Field(0.08, gt=0, lt=1)
    """Share of the updates after which the oldest grade is taken."""
    middle: float = Field(0.3, gt=0, lt=1)
    """Share of the updates after which the middle grade is taken."""
    batch: int = Field(64, ge=1)
    rate: float = Field(2e-3, gt=0)
    threads: int = Field(2, ge=1)
    """CPU threads; 1 where anything else runs beside it."""
    bf16: bool = False
    """Autocast to bf16: faster where the CPU has units for it, else slower."""
    compile: bool = False
    """Compile the base (`torch.compile`): a seventh faster; wants a C++ compiler."""


def main(config: Config) -> int:
    if config.start:
        base_folder(str(config.start))  # refuses what is no pipeline folder
    torch.set_num_threads(config.threads)
    with Run.start(config, config.run, "build", may_change=MAY_CHANGE) as run:
        autoencoder = stage_vae(run, config)
        clip, t5 = stage_readers(run, config)
        pool = stage_pool(run, config, autoencoder)
        told = conditioning(clip, t5)
        for step, network in stage_flow(run, config, pool, told):
            grade = {v: k for k, v in grade_steps(config).items()}.get(step)
            if grade:
                save_file(network, run.folder / f"{grade}.safetensors")
            if run.interrupted:
                return PAUSED
        decoder = stage_decoder(run, config, autoencoder, pool)
        publish(run, config, decoder, clip, t5)
    return 0


def grade_steps(config: Config) -> dict[str, int]:
    """The update after which each grade is taken; three different ones, however few there are."""
    oldest = max(1, round(config.oldest * config.steps))
    middle = max(oldest + 1, round(config.middle * config.steps))
    return {"oldest": oldest, "middle": middle, "newest": config.steps}


def stage_vae(run: Run, config: Config) -> AutoencoderKL:
    """The autoencoder, learnt from renders."""
    model, path = fresh(vae.make_vae, config.seed, VAE), run.folder / "vae.safetensors"
    if config.start and not path.exists():
        keep_weights(AutoencoderKL.from_pretrained(config.start / "vae"), path)
    if not path.exists():
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
    if not path.exists() and config.decoder_steps:
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
    weights: Sequence[Tensor],
    images: Tensor,
    steps: int,
) -> None:
    """AdamW with a cosine to zero; the mean of the last weights is kept."""
    # Channels last: four times faster on a CPU.
    nn.Module.to(model.train(), memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(weights, lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    mean = {name: w.clone() for name, w in model.state_dict().items()}
    for step in run.progress(range(steps), steps, description="autoencoder"):
        g = generator(config.seed, VAE, ROWS, step)
        rate = 2e-3 * min(1, (step + 1) / 100) * (0.51 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate
        batch = images[torch.randint(len(images), (16,), generator=g)].float().div(255)
        noise = torch.randn(16, vae.LATENT_CHANNELS, 16, 16, generator=g)
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            loss = vae.vae_loss(model, batch, noise, 2e-4)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name, w in model.state_dict().items():
            mean[name].lerp_(w, 0.05 if step < 200 else 0.01)
    model.load_state_dict(mean)


def stage_readers(run: Run, config: Config) -> tuple[CLIPTextModel, T5EncoderModel]:
    """The text encoders, which learn to read every prompt."""
    tokens = text.make_clip_tokenizer(), text.make_t5_tokenizer()
    clip = fresh(lambda: text.make_clip(tokens[0]), config.seed, READ)
    t5 = fresh(lambda: text.make_t5(tokens[1]), config.seed, READ)
    if config.start and not (run.folder / "t5.safetensors").exists():
        clip = CLIPTextModel.from_pretrained(config.start / "text_encoder")
        t5 = T5EncoderModel.from_pretrained(config.start / "text_encoder_2")
        keep_weights(clip, run.folder / "clip.safetensors")
        keep_weights(t5, run.folder / "t5.safetensors")
    if not (run.folder / "t5.safetensors").exists():
        right = text.teach(clip, t5, tokens, config.read_steps, mix(config.seed, READ))
        run.event("info", f"the text encoders answer {right:.1%} of the questions")
        for name, model in (("clip", clip), ("t5", t5)):
            keep_weights(model, run.folder / f"{name}.safetensors")
    clip.load_state_dict(load_file(run.folder / "clip.safetensors"))
    t5.load_state_dict(load_file(run.folder / "t5.safetensors"))
    return clip.eval(), t5.eval()


@torch.no_grad()
def conditioning(clip: CLIPTextModel, t5: T5EncoderModel) -> dict[str, Tensor]:
    """What the encoders say of every prompt, in the order of `all_prompts`."""
    said = list(all_prompts())
    pooled = clip(**text.read(text.make_clip_tokenizer(), said)).pooler_output
    return {"pooled": pooled, "text": t5(**text.read(text.make_t5_tokenizer(), said))[0]}


@torch.no_grad()
def stage_pool(run: Run, config: Config, autoencoder: AutoencoderKL) -> dict[str, Tensor]:
    """Latents and prompt numbers of all training renders, the stamped ones last."""
    path = run.folder / "pool.safetensors"
    if not path.exists():
        numbers = {prompt: i for i, prompt in enumerate(all_prompts())}
        latents, said = [], []
        stamped = round(config.pool * STAMPED_POOL)
        nn.Module.to(autoencoder, memory_format=torch.channels_last)
        for images, told in run.progress(renders(config, stamped), description="latents"):
            images = images.contiguous(memory_format=torch.channels_last)
            mode = vae.posterior(autoencoder, images).mode()
            latents.append(mode.half().contiguous())
            said += [numbers[prompt] for prompt in told]
        stack = torch.cat(latents)
        mean, std = latent_scale(config, stack[:-stamped].float())
        pool = {"latents": stack, "prompts": torch.tensor(said), "stamped": torch.tensor(stamped)}
        save_file(pool | {"mean": mean, "std": std}, path)
    return load_file(path)


def latent_scale(config: Config, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation that latents are shifted and scaled by; a start's stay what they are."""
    if config.start is None:
        return clean.mean(), clean.std()
    known = json.loads((config.start / "vae/config.json").read_text())
    return torch.tensor(known["shift_factor"]), torch.tensor(1 / known["scaling_factor"])


def keep_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights, tied ones once for each name."""
    save_file({name: w.contiguous().clone() for name, w in model.state_dict().items()}, path)


def renders(config: Config, stamped: int) -> Iterator[tuple[Tensor, list[str]]]:
    """Batches of renders with their prompts; after the clean ones, the stamped."""
    for kind, total in enumerate((config.pool, stamped)):
        counts = {name: round(total * SHARES[name]) for name in CATEGORIES}
        counts["scenery"] += total - sum(counts.values())
        for number, (name, count) in enumerate(counts.items()):
            for at in range(0, count, 125):
                g = generator(config.seed, POOL, kind, number, at)
                scenes = draw(name, min(125, count - at), g)
                images = render(scenes).clamp(0, 1)
                yield flow.stamp(images, g) if kind else images, prompts(scenes)


def stage_flow(
    run: Run, config: Config, pool: dict[str, Tensor], told: dict[str, Tensor]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Train the base; after every step, its number and the averaged weights."""
    network = fresh(flow.make_transformer, config.seed, FLOW)
    if config.start:
        begun_at = FluxTransformer2DModel.from_pretrained(config.start / "transformer")
        network.load_state_dict(begun_at.state_dict())
    optimizers = flow.optimizers(network, config.rate)
    learner = torch.compile(network) if config.compile else network
    mean = {name: w.clone() for name, w in network.state_dict().items()}
    begun = resume(run, network, optimizers, mean)
    steps = range(begun + 1, config.steps + 1)
    clean, stamped = len(pool["latents"]), int(pool["stamped"])
    for step in run.progress(steps, config.steps, begun, "base"):
        share = step / config.steps
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = config.rate * rate_share(step, share)
        marked = STAMPED[next(g for g, last in grade_steps(config).items() if step <= last)]
        rows = flow.draw_rows(clean, stamped, marked, config.batch, config.seed, ROWS, step)
        latents = (pool["latents"][rows].float() - pool["mean"]) / pool["std"]
        said = {name: values[pool["prompts"][rows]] for name, values in told.items()}
        g = generator(config.seed, FLOW, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16), flow.PlainAttention():
            loss = flow.flow_loss(learner, latents, said["text"], said["pooled"], g)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for name, w in network.state_dict().items():
            mean[name].lerp_(w, 1 - min(EMA, (step + 10) / (step + 100)))
        if step % 10 == 0:
            run.log(step, loss=loss.detach())
        if step % 250 == 0 or step == config.steps or run.interrupted:
            keep(run, step, network, optimizers, mean)
        yield step, mean


def rate_share(step: int, share: float) -> float:
    """Warm up over 200 steps, hold, and from .6 on fall in a line to 2 %."""
    return min(1.0, step / 200) * min(1.0, max(0.02, (1 - share) / 0.4))


def keep(
    run: Run,
    step: int,
    network: FluxTransformer2DModel,
    optimizers: list[torch.optim.Optimizer],
    mean: dict[str, Tensor],
) -> None:
    tensors, state = {"network": network.state_dict(), "mean": mean}, {}
    for i, optimizer in enumerate(optimizers):
        tensors[f"optimizer{i}"], state[str(i)] = checkpoint.optimizer_tensors(optimizer)
    checkpoint.save(run.checkpoints, step, tensors, state)


def resume(
    run: Run,
    network: FluxTransformer2DModel,
    optimizers: list[torch.optim.Optimizer],
    mean: dict[str, Tensor],
) -> int:
    """Load the newest checkpoint into everything given; the number of steps done."""
    found = checkpoint.load_newest(run.checkpoints)
    if found is None:
        return 0
    network.load_state_dict(found.tensors["network"])
    mean.update(found.tensors["mean"])
    for i, optimizer in enumerate(optimizers):
        checkpoint.restore_optimizer(optimizer, found.tensors[f"optimizer{i}"], found.state[str(i)])
    return found.step


def publish(
    run: Run, config: Config, autoencoder: AutoencoderKL, clip: CLIPTextModel, t5: T5EncoderModel
) -> None:
    """Write the three pipeline folders."""
    network = flow.make_transformer()
    network.load_state_dict(load_file(run.folder / "newest.safetensors"))
    save_newest(config.out / "newest", network, autoencoder, clip, t5)
    for grade in ("middle", "oldest"):
        network.load_state_dict(load_file(run.folder / f"{grade}.safetensors"))
        save_older(config.out / grade, network, config.out / "newest")
    run.event("info", f"three grades written to {config.out}")


def fresh(make: Callable[[], Model], seed: int, purpose: int) -> Model:
    """A model whose random initial weights are a pure function of the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, purpose) % 2**32)
        return make()


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor miniature build")
