"""Self-refining training: a base, images and a flaw highlighter in, the base trained on out.

    diffdoctor self-refine --base FOLDER --data shards --highlighter runs/highlighter --out RUN

Two phases (arXiv 2512.08774): first the base's own loss alone, then, for the last `refine_share` of
the steps, the same loss with the mean flaw map of the base's own images in the noise (`noise`, for
bases that draw pixels) and in the attention (`attention`). The map is made anew every `cycle` steps
from images that the averaged weights draw. `pipeline/` in the run folder is the result, which every
program here and diffusers open like any other base: it is sampled plainly. The same command
resumes the run.

Legend: b batch, h w pixels.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import core.config
from base_models.load import FAMILIES, check_base, load_base, locate
from base_models.sample import autocast, sample
from base_models.sizes import check_size, check_steps, of_size, usual_size
from base_models.unconditional import Unconditional
from core import checkpoint
from core.contracts import Conditioning, DiffusionModel, Images
from core.errors import UserError
from core.heatmap import colourise, overlay
from core.images import contact_sheet, write_image
from core.inputs import hold
from core.memory import in_use
from core.order import batch_indices
from core.run import PAUSED, Run
from core.seeds import mix
from core.storage import check_writable, remove_tree
from core.wishes import MET
from detector.flaw_map import FlawMap
from detector.learning import Learner, learning_rate
from detector.measure import device
from detector.storage import load_highlighter
from treat.cache import digest
from treat.inputs import of_base, of_detector, of_real
from treat.offline import RealRows, cache_offline, read_offline
from treat.self_refining.attention import Flaws, unwrap, wrap
from treat.self_refining.noise import amplified
from treat.self_refining.settings import Config
from treat.terms import offline_term
from treat.watch import split_rows

ORDER, NOISE, DRAWN, PROMPTED, DROPOUT = 0x5E1F01, 0x5E1F02, 0x5E1F03, 0x5E1F04, 0x5E1F05
"""What a draw is for; see `core.seeds`."""
MAP = "flaws"
PICTURED = 8


class World(nn.Module):
    """What learns: the base's network, and the embedding of the map."""

    def __init__(self, network: nn.Module, flaws: Flaws):
        super().__init__()
        self.network, self.flaws = network, flaws


def main(config: Config) -> int | None:
    """Train to the end, or until a signal: then save and return `PAUSED`."""
    config = of_size(config, usual_size(config.base, config.height, config.width))
    folder = check(config)
    with Run.start(config, config.out, "self-refine") as run:
        hold(run, digests(config, folder))
        place = device(config.device)
        model, rows = open_model(config, place)
        highlighter = None
        if config.refining and config.highlighter is not None:
            highlighter = FlawMap(load_highlighter(config.highlighter)).to(place)
        flaws = Flaws(config.embedding, finest(model, *size_of(config)), config.seed)
        if config.refining and config.reverse_weight:
            wrap(model.network, flaws, config.reverse_weight)
        world = World(model.network, flaws.to(place)).requires_grad_(True).train()
        learner = Learner(world, config.weight_decay, config.ema)
        saved = checkpoint.load_newest(run.checkpoints, lambda text: run.event("warn", text))
        if saved is not None:
            learner.unpack(saved.tensors, saved.state)
            known = saved.tensors[MAP].get("map")
            flaws.map = None if known is None else known.to(place)
        start = 0 if saved is None else saved.step
        for step in run.progress(range(start, config.steps), config.steps, start, "self-refine"):
            if highlighter is not None and due(config, step):
                flaws.map = renewed(config, model, learner, highlighter, rows, step, run)
            figures, done = learn(config, model, learner, rows, step), step + 1
            asked = run.wishes()
            run.log(done, **figures, **in_use(place))
            if "sample" in asked:
                images = drawn(config, model, learner, rows, done, PICTURED)
                write_image(run.pictures / f"step-{done:08d}.png", sampled(images, highlighter))
            save = done % config.checkpoint_every == 0 or "save" in asked
            if run.interrupted or save or done == config.steps:
                tensors, state = learner.pack()
                tensors[MAP] = {} if flaws.map is None else {"map": flaws.map}
                checkpoint.save(run.checkpoints, done, tensors, state)
            for wish in sorted(asked):
                run.event("info", f"{MET[wish]} after step {done}, as asked", step=done)
            if run.interrupted and done < config.steps:
                return PAUSED
        flaws.map = None
        learner.settle()
        write_pipeline(model, folder, run.folder / "pipeline")
        run.summary({"pipeline": "pipeline", "steps": config.steps})
        run.event("info", f"the base is in {run.folder / 'pipeline'}")
    return None


def check(config: Config) -> Path:
    """The base's folder; `UserError` for what cannot work, before anything heavy."""
    check_size(config.base, *size_of(config))
    check_steps(config.base, config.map_steps)
    folder = locate(config.base)
    if not folder.is_dir():
        raise UserError(f"{folder} is a single file: save its pipeline as a folder first.")
    family = FAMILIES[check_base(folder)]
    if config.refining and config.forward_weight and family.autoencoder is not None:
        raise UserError(
            "amplified noise is for bases that draw pixels: a flaw of pixels has no value in "
            "latents. Set forward_weight to 0."
        )
    read_offline(config.data, config.limit, captioned=family.prompted)
    if config.refining and config.highlighter is not None:
        load_highlighter(config.highlighter)
    check_writable(config.out.parent)
    return folder


def digests(config: Config, base: Path) -> dict[str, str]:
    """Of what a run that goes on reads again."""
    captioned = FAMILIES[check_base(base)].prompted
    found = {"base": of_base(config.base), "data": of_real(config.data, config.limit, captioned)}
    if config.highlighter is not None:
        found["highlighter"] = digest([of_detector(config.highlighter)])
    return found


def open_model(config: Config, place: torch.device) -> tuple[DiffusionModel, RealRows]:
    """The base in float32, and the images as it takes them, encoded once."""
    model = load_base(config.base)
    model.encoders_to(place)
    prompted = not isinstance(model, Unconditional)
    images = read_offline(config.data, config.limit, captioned=prompted)
    size = size_of(config)
    cache = cache_offline(config.out / "cache", model, config.base, images, *size)
    rows = RealRows(cache, images.captions, place, hold=False)
    model.drop_text_encoders()
    model.to(place)
    return model, rows


def size_of(config: Config) -> tuple[int, int]:
    return usual_size(config.base, config.height, config.width)


def finest(model: DiffusionModel, height: int, width: int) -> tuple[int, int]:
    """Tokens down and across: latents, or the patches of two that transformers here take."""
    y, x = model.noise([0], height, width).shape[-2:]
    patch = 2 if "Transformer" in type(model.network).__name__ else 1
    return y // patch, x // patch


def due(config: Config, step: int) -> bool:
    refined = step - config.base_steps
    return refined >= 0 and refined % config.cycle == 0


def learn(
    config: Config, model: DiffusionModel, learner: Learner[World], rows: RealRows, step: int
) -> dict[str, float]:
    """The base's own loss at step `step`, with the map where there is one; one update."""
    places = batch_indices(len(rows.train), config.batch, mix(config.seed, ORDER), step)
    seeds = [mix(config.seed, NOISE, step, i) for i in range(config.batch)]
    found, flaws = rows.rows(places), learner.model.flaws.map
    place = next(learner.model.parameters()).device
    precision = autocast(place.type, config.mixed_precision)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(mix(config.seed, DROPOUT, step))
        if flaws is not None and config.forward_weight and isinstance(model, Unconditional):
            law = {"weight": config.forward_weight, "variant": config.forward}
            with precision():
                clean = split_rows(found)[0]
                loss = model.amplified_loss(clean, seeds, partial(amplified, flaws=flaws, **law))
        else:
            loss = offline_term(model, found, seeds, precision)
        power = 0.0 if config.decay == "constant" else 1.0
        rate = learning_rate(step, config.steps, config.learning_rate, config.warmup, power=power)
        norm = learner.update(loss, rate, config.clip, step)
    return {"loss": loss.item(), "gradient_norm": norm, "learning_rate": rate}


def renewed(
    config: Config,
    model: DiffusionModel,
    learner: Learner[World],
    highlighter: FlawMap,
    rows: RealRows,
    step: int,
    run: Run,
) -> Float[Tensor, "1 1 h w"]:
    """The mean flaw map of images that the averaged weights draw plainly; a picture of it."""
    images = drawn(config, model, learner, rows, step, config.map_images)
    place = next(learner.model.parameters()).device
    parts = [highlighter.flaw_maps(part.to(place)) for part in images.split(config.batch)]
    maps = torch.cat(parts).cpu()
    mean = maps.mean(0, keepdim=True)
    shown = min(PICTURED, len(images))
    columns: list[Any] = [images, overlay(images, maps)]
    sheet = [[column[i] for column in columns] for i in range(shown)]
    sheet.append([colourise(mean)[0], overlay(images[:1], mean)[0]])
    picture = contact_sheet(sheet, columns=("drawn", "flaws; last row: the mean"))
    write_image(run.pictures / f"step-{step:08d}.png", picture)
    seen = bool(mean.any())
    told = f"a new map after step {step}: mean {mean.mean():.3f}"
    told += "" if seen else "; the highlighter sees no flaw anywhere, and nothing is refined"
    run.event("info" if seen else "warn", told, step=step)
    return mean.to(place)


def drawn(
    config: Config,
    model: DiffusionModel,
    learner: Learner[World],
    rows: RealRows,
    step: int,
    count: int,
) -> Images:
    """Images that the averaged weights draw plainly; weights and map stay as they are."""
    seeds = [mix(config.seed, DRAWN, step, i) for i in range(count)]
    asked = batch_indices(len(rows.train), count, mix(config.seed, PROMPTED), step)
    text: Conditioning = split_rows(rows.rows(asked))[1]
    place, flaws = next(learner.model.parameters()).device, learner.model.flaws
    known, flaws.map = flaws.map, None
    height, width = size_of(config)
    with learner.averaged():
        images = sample(
            model,
            text,
            seeds,
            steps=config.map_steps,
            height=height,
            width=width,
            batch=config.batch,
            precision=autocast(place.type, config.mixed_precision),
        )
    flaws.map = known
    return images


def sampled(images: Images, highlighter: FlawMap | None) -> Tensor:
    """A sheet for whoever asked for it between two maps: images and, if known, their flaws."""
    columns: list[Any] = [images]
    if highlighter is not None:
        place = next(highlighter.parameters()).device
        columns.append(overlay(images, highlighter.flaw_maps(images.to(place)).cpu()))
    rows = [[column[i] for column in columns] for i in range(len(images))]
    return contact_sheet(rows, columns=("drawn", "flaws")[: len(columns)])


def write_pipeline(model: DiffusionModel, base: Path, out: Path) -> None:
    """A copy of the base's folder with the network as it is now; whole or not at all."""
    unwrap(model.network)
    part = "transformer" if (base / "transformer").is_dir() else "unet"
    staging = out.with_name(f".{out.name}.staging")
    for left in (staging, out):  # of a stopped run
        if left.exists():
            remove_tree(left)
    shutil.copytree(base, staging, ignore=lambda at, names: [part] if Path(at) == base else [])
    network: Any = model.network
    network.save_pretrained(staging / part)
    staging.rename(out)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m treat.self_refining.train")
