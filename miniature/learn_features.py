"""The miniature's feature network: the law in; a folder that `diffdoctor compare --features` reads.

    diffdoctor miniature features --out runs/features

From its features alone one linear head a question must tell what a sound render shows: the
category, and within it every discrete factor (shapes, counts, words, colours). It never sees an
artifact, as Inception never did. The run folder resumes with the same command; `features/` in it is
the result. What ships is in miniature/features.

Legend: b images, q answers of a question.
"""

from pathlib import Path

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import core.config
from core import checkpoint
from core.contracts import Images
from core.images import from_uint8, to_uint8
from core.order import batch_indices
from core.run import PAUSED, Run
from core.seeds import generator, mix
from detector.features import Description, SmallFeatures, save_features
from detector.learning import Learner, learning_rate
from detector.measure import device
from miniature.law import CATEGORIES, Scenes, draw
from miniature.paint import render

NAME = "miniature features"
RENDERED, HELD, ORDER, BEGIN = 141, 142, 143, 144
"""What a draw is for; see `core.seeds`."""
CATEGORY = "category"
UNASKED = -1
BATCH = 125
"""Renders at once."""
Answers = dict[str, Int[Tensor, " b"]]


class Config(core.config.Config):
    """Minutes on one core. The same command resumes."""

    out: Path = Path("runs/features")
    """Run folder."""
    renders: int = Field(20_000, ge=5)
    """Sound images that teach, the categories evenly."""
    held_out: int = Field(2_000, ge=5)
    """Further ones that it is measured on."""
    steps: int = Field(2_000, ge=1)
    """Optimizer steps."""
    batch: int = Field(64, ge=2)
    """Images of a step."""
    rate: float = Field(2e-3, gt=0)
    """Highest learning rate."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps; what an interruption costs at most."""
    device: str = "auto"
    """`auto`, or a torch device."""
    seed: int = Field(0, ge=0)
    """Of weights and renders."""


class Taught(nn.Module):
    """Features, and the heads that only teach them."""

    def __init__(self, shape: Description, seed: int):
        super().__init__()
        self.features = SmallFeatures(shape, mix(seed, BEGIN) % 2**32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, BEGIN, 1) % 2**32)
            self.heads = nn.ModuleDict({
                name: nn.Linear(shape.channels[-1], count) for name, count in questions().items()
            })  # fmt: skip

    def forward(self, images: Images) -> dict[str, Tensor]:
        """Logits (b, q) of every question."""
        found = self.features(2 * images - 1)  # as `detector.features.Features` asks
        return {name: head(found) for name, head in self.heads.items()}


def main(config: Config) -> int | None:
    """Train to the end, or until a signal: then save and return `PAUSED`."""
    shape = Description(name=NAME)
    with Run.start(config, config.out, "miniature features") as run:
        place = device(config.device)
        learner = Learner(Taught(shape, config.seed).to(place).train())
        saved = checkpoint.load_newest(run.checkpoints, lambda text: run.event("warn", text))
        if saved is not None:
            learner.unpack(saved.tensors, saved.state)
        start = 0 if saved is None else saved.step
        images, answers = renders(config.renders, config.seed, RENDERED)
        for step in run.progress(range(start, config.steps), config.steps, start, "features"):
            rows = batch_indices(len(images), config.batch, mix(config.seed, ORDER), step)
            loss = examine(learner.model, images, answers, rows)
            rate = learning_rate(step, config.steps, config.rate, warmup=50, decay="cosine")
            learner.update(loss, rate, clip=1.0, step=step)
            done = step + 1
            if done % 50 == 0:
                run.log(done, loss=loss)
            if run.interrupted or done % config.checkpoint_every == 0 or done == config.steps:
                checkpoint.save(run.checkpoints, done, *learner.pack())
            if run.interrupted and done < config.steps:
                return PAUSED
        publish(run, config, shape, learner.model.eval())
    return None


def questions() -> dict[str, int]:
    """Every question and how many answers it has: `category`, `hand-side`, `face-mouth` ..."""
    found = {CATEGORY: len(CATEGORIES)}
    for category, law in CATEGORIES.items():
        found |= {f"{category}-{name}": len(values) for name, values in law.factors.items()}
    return found


def answered(scenes: Scenes) -> Answers:
    """The right answer to every question, `UNASKED` to those of other categories."""
    found = {name: torch.full((len(scenes),), UNASKED) for name in questions()}
    found[CATEGORY].fill_(list(CATEGORIES).index(scenes.category))
    for name, values in scenes.factors.items():
        found[f"{scenes.category}-{name}"] = values
    return found


def renders(n: int, seed: int, purpose: int) -> tuple[Tensor, Answers]:
    """About n sound images, 8-bit (b, h, w, 3), the categories evenly; and their answers."""
    images, answers = [], []
    for number, name in enumerate(CATEGORIES):
        for at in range(0, -(-n // len(CATEGORIES)), BATCH):
            count = min(BATCH, -(-n // len(CATEGORIES)) - at)
            scenes = draw(name, count, generator(seed, purpose, number, at))
            images.append(torch.from_numpy(to_uint8(render(scenes))))
            answers.append(answered(scenes))
    joined = {name: torch.cat([part[name] for part in answers]) for name in questions()}
    return torch.cat(images), joined


def examine(model: Taught, images: Tensor, answers: Answers, rows: list[int]) -> Tensor:
    """Mean over the questions of the cross-entropy where they apply."""
    place = next(model.parameters()).device
    logits = model(from_uint8(images[rows].numpy()).to(place))
    losses = []
    for name, said in logits.items():
        wanted = answers[name][rows].to(place)
        if (wanted != UNASKED).any():
            losses.append(F.cross_entropy(said, wanted, ignore_index=UNASKED))
    return torch.stack(losses).mean()


@torch.no_grad()
def marks(model: Taught, images: Tensor, answers: Answers) -> dict[str, float]:
    """The share of right answers to each question, and `mean` over the questions."""
    place, hits = next(model.parameters()).device, {name: [] for name in answers}
    for rows in torch.arange(len(images)).split(BATCH):
        for name, said in model(from_uint8(images[rows].numpy()).to(place)).items():
            wanted = answers[name][rows]
            asked = wanted != UNASKED
            hits[name].append((said.cpu().argmax(dim=1) == wanted)[asked])
    found = {name: torch.cat(parts).float().mean().item() for name, parts in hits.items()}
    return {"mean": sum(found.values()) / len(found), **found}


def publish(run: Run, config: Config, shape: Description, model: Taught) -> None:
    """Measure, and write the folder with what was measured."""
    right = marks(model, *renders(config.held_out, config.seed, HELD))
    card = {
        "made_by": "diffdoctor miniature features",
        "settings": config.model_dump(mode="json", exclude={"out", "device", "checkpoint_every"}),
        "right_on_held_out_renders": {name: round(share, 4) for name, share in right.items()},
        "licence": "Apache-2.0, as this project; trained on its own renders alone.",
    }
    described = shape.model_copy(update={"card": card})
    save_features(model.features, described, run.folder / "features")
    run.summary({"features": "features", **right})
    run.event("info", f"{right['mean']:.1%} of the answers are right; {run.folder / 'features'}")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor miniature features")
