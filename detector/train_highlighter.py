"""Train a flaw highlighter: real and generated images in, a folder that `open_detector` reads out.

    diffdoctor detector train-highlighter --data photographs drawn --out runs/highlighter
    diffdoctor detector diagnose image.png --detector runs/highlighter --out diagnosis

It learns to tell the two apart; its Grad-CAM then shows by what (self-refining diffusion, arXiv
2512.08774; `detector.flaw_map`). No mask is needed: samples of source `real` are the real ones, all
others generated. Half of every batch is of either kind. The run folder resumes with the same
command; `detector/` in it is the result. How the paper trained its own is unpublished.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

import core.config
from core import checkpoint, inputs
from core.contracts import Images
from core.errors import UserError
from core.heatmap import colourise, overlay
from core.images import contact_sheet, write_image
from core.memory import in_use
from core.order import batch_indices
from core.run import PAUSED, Run
from core.samples import Record, Sample
from core.seeds import generator, mix
from core.wishes import MET
from detector.augmentation import Augmentation
from detector.data import check_sizes, may_mirror, split_by_group, spread, to_pictures
from detector.flaw_map import FlawMap, Highlighter, HighlighterConfig, load_pretrained
from detector.highlighter_settings import Config
from detector.learning import Learner, learning_rate
from detector.measure import device
from detector.sources import Chosen, open_data
from detector.storage import save_highlighter

REAL, ORDER, MIRROR, DROPOUT = "real", 121, 122, 123
"""The source of real images; what a draw is for (`core.seeds`)."""
PICTURED = 8
UNFLIPPED = Augmentation().unflipped
Kinds = tuple[Chosen, Chosen]
"""Real samples, generated ones."""


def main(config: Config) -> int | None:
    """Train to the end, or until a signal: then save and return `PAUSED`."""
    samples, records = open_data(config.data, masked=False)
    train, valid = split(samples, records, config.valid_share, config.valid_limit, config.seed)
    check_sizes(config.size, *train, *valid)
    shape = HighlighterConfig(variant=config.variant, side=config.side, hidden=config.hidden)
    highlighter = Highlighter(shape, config.seed)
    if config.weights is not None:
        load_pretrained(highlighter, config.weights)
    with Run.start(config, config.out, "detector train-highlighter") as run:
        inputs.hold(run, {"data": inputs.of_data(config.data)})
        place = device(config.device)
        learner = Learner(highlighter.to(place).train(), config.weight_decay)
        saved = checkpoint.load_newest(run.checkpoints, lambda text: run.event("warn", text))
        if saved is not None:
            learner.unpack(saved.tensors, saved.state)
        start, held = 0 if saved is None else saved.step, {}
        for step in run.progress(range(start, config.steps), config.steps, start, "highlighter"):
            figures, done = learn(learner, train, config, step), step + 1
            asked, last = run.wishes(), done == config.steps
            if done % config.valid_every == 0 or last:
                held = measure(run, highlighter, valid, config, done)
                figures |= held
            elif "sample" in asked:
                picture(run, highlighter, valid, config, done)
            run.log(done, **figures, **in_use(place))
            due = done % config.checkpoint_every == 0 or last
            if run.interrupted or due or "save" in asked:
                checkpoint.save(run.checkpoints, done, *learner.pack())
            for wish in sorted(asked):
                run.event("info", f"{MET[wish]} after step {done}, as asked", step=done)
            if run.interrupted and done < config.steps:
                return PAUSED
        held = held or measure(run, highlighter, valid, config, config.steps)
        card = {
            "data": [path.resolve().name for path in config.data],
            "samples": {"real": len(train[0]), "generated": len(train[1])},
            "steps": config.steps,
            "seed": config.seed,
            "weights": None if config.weights is None else config.weights.name,
            "held_out": held,
        }
        save_highlighter(highlighter, run.folder / "detector", card)
        run.summary({"detector": "detector", **held})
        run.event("info", f"the highlighter is in {run.folder / 'detector'}")
    return None


def split(
    samples: Sequence[Sample], records: Sequence[Record], share: float, limit: int, seed: int
) -> tuple[Kinds, Kinds]:
    """What teaches and what is held out, of each kind; `UserError` where one is empty."""
    sides = []
    for positions, most in zip(split_by_group(records, share, seed), (None, limit), strict=True):
        kinds: tuple[list[int], list[int]] = ([], [])
        for i in positions:
            kinds[records[i].source != REAL].append(i)
        for kind, name in zip(kinds, ("real", "generated"), strict=True):
            if not kind:
                raise UserError(
                    f"no {name} image {'teaches' if most is None else 'is held out'}: give more, "
                    "of source real (`data import photographs`) and of any other."
                )
        half = None if most is None else most // 2
        chosen = [Chosen(samples, [kind[i] for i in spread(len(kind), half)]) for kind in kinds]
        sides.append((chosen[0], chosen[1]))
    return sides[0], sides[1]


def learn(
    learner: Learner[Highlighter], kinds: Kinds, config: Config, step: int
) -> dict[str, float]:
    """Cross-entropy over half a batch of each kind; a pure function of samples, seed and step."""
    images = torch.cat([drawn(samples, config, step) for samples in kinds])
    target = torch.cat([torch.ones(config.batch // 2), torch.zeros(config.batch // 2)])
    place = next(learner.model.parameters()).device
    rate = learning_rate(step, config.steps, config.learning_rate, config.warmup)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(mix(config.seed, DROPOUT, step))
        with torch.autocast(place.type, torch.bfloat16, enabled=config.mixed_precision):
            logits = learner.model(images.to(place))
        loss = F.binary_cross_entropy_with_logits(logits.float(), target.to(place))
        norm = learner.update(loss, rate, config.clip, step)
    return {"loss": loss.item(), "gradient_norm": norm, "learning_rate": rate}


def drawn(samples: Sequence[Sample], config: Config, step: int) -> Images:
    """Half a batch of one kind; some mirrored, where a mirror image is as good."""
    places = batch_indices(len(samples), config.batch // 2, mix(config.seed, ORDER), step)
    chosen = [samples[i] for i in places]
    images = to_pictures(chosen, config.size)
    mirrored = torch.rand(len(chosen), generator=generator(config.seed, MIRROR, step)) < 0.5
    mirrored &= torch.tensor([may_mirror(sample.record, UNFLIPPED) for sample in chosen])
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


@torch.no_grad()
def measure(
    run: Run, highlighter: Highlighter, kinds: Kinds, config: Config, step: int
) -> dict[str, float]:
    """Share of the held-out images of each kind that are told right; a sheet of flaw maps."""
    highlighter.eval()
    place = next(highlighter.parameters()).device
    logits = []
    for samples in kinds:
        parts = range(0, len(samples), config.batch)
        rows = [
            [samples[i] for i in range(at, min(at + config.batch, len(samples)))] for at in parts
        ]
        found = [highlighter(to_pictures(row, config.size).to(place)).cpu() for row in rows]
        logits.append(torch.cat(found))
    highlighter.train()
    picture(run, highlighter, kinds, config, step)
    right = (logits[0] > 0).float().mean().item(), (logits[1] <= 0).float().mean().item()
    return {"valid/real": right[0], "valid/generated": right[1], "valid/balanced": sum(right) / 2}


def picture(run: Run, highlighter: Highlighter, kinds: Kinds, config: Config, step: int) -> None:
    """The first held-out generated images with their flaw maps."""
    highlighter.eval()
    place = next(highlighter.parameters()).device
    shown = to_pictures([kinds[1][i] for i in range(min(PICTURED, len(kinds[1])))], config.size)
    maps = FlawMap(highlighter).flaw_maps(shown.to(place)).cpu()
    write_image(run.pictures / f"step-{step:08d}.png", sheet(shown, maps))
    highlighter.train()


def sheet(images: Images, maps: Tensor) -> Tensor:
    """A row for each generated image: itself, its flaw map, both."""
    columns = (images, colourise(maps), overlay(images, maps))
    rows = [[column[i] for column in columns] for i in range(len(images))]
    return contact_sheet(rows, columns=("generated", "flaw map", "overlay"))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m detector.train_highlighter")
