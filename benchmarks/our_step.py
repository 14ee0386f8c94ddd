"""A task in, one step of this project measured, and its gradient, out; one process.

    python -m benchmarks.our_step --config task.yaml

What is timed is the loop's inside of `treat.train.main`: `learn` of one micro-batch and the update.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

import core.config
from base_models.checkpointing import recompute_blocks
from base_models.compilation import compile_blocks
from base_models.layout import decoder_in_channels_last
from base_models.load import load_base
from base_models.sample import autocast
from benchmarks.footprint import Footprint
from benchmarks.peer_worlds import PROMPT, TARGETS, open_detector
from benchmarks.side_by_side import SEED, Task, write, write_gradient
from core.contracts import ArtifactMap, Images
from core.processes import this_process
from detector.segformer import SegformerDetector
from treat.adapter import read_adapter, take_up
from treat.lora import add_lora, lora_parameters
from treat.pieces import Pieces
from treat.settings import Config
from treat.texts import encode_texts, split_prompts
from treat.train import Lesson, learn, rate
from treat.update import Places, Update
from treat.watch import always

FORMS = (
    "recompute",
    "checkpoint_blocks",
    "checkpoint_decoder",
    "two_pass_decode",
    "compile_blocks",
)
"""What a task and a treatment have in common."""


@dataclass
class OwnGrid:
    """The detector's map at its own input's size, as the release takes its loss."""

    detector: SegformerDetector
    differentiable: bool = True

    def __call__(self, images: Images) -> ArtifactMap:
        size = self.detector.working_size(*images.shape[-2:])
        small = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return self.detector(small)


def main(task: Task) -> None:
    this_process()
    lesson, update = prepare(task)
    pieces = Pieces(update, lambda *_: None, lambda: None, may_halve=True)

    def accumulate(step: int) -> dict[str, Any]:
        here = lesson.places.here(0)
        return pieces.run(partial(learn, lesson, step), here, lesson.places.share)

    footprint = Footprint()
    footprint.begin()
    figures: dict[str, Any] = {}
    for step in range(1, task.repeats + 2):
        found = accumulate(step)
        if step == 1:
            write_gradient(task, [w.grad for w in update.weights if w.grad is not None])
        update.collect(lesson.places.share, found)
        last = update.apply(step, SEED, False, rate(lesson.config, step))
        figures = figures or last
        footprint.lap()
    write(task, footprint.found() | {"loss": figures["pixel"], "norm": figures["gradient_norm"]})


def prepare(task: Task) -> tuple[Lesson, Update]:
    """As `treat.train.main` opens its parts; the adapters and the detector are given."""
    config, device = settings(task), torch.device("cpu")
    model: Any = load_base(config.base)
    recompute_blocks(model, config.checkpoint_blocks, config.checkpoint_decoder)
    split = split_prompts(config.prompts, 1)
    texts = encode_texts(task.folder / "cache", model, config.base, split, device)
    model.drop_text_encoders()
    decoder_in_channels_last(model)
    add_lora(model.network, task.rank, TARGETS, SEED)
    take_up(model.network, read_adapter(task.lora))
    if config.compile_blocks:
        compile_blocks(model.network)
    opened = open_detector(task.detector)
    reward = OwnGrid(opened) if task.detector_grid else opened
    places = Places(SEED, config.batch, config.accumulation)
    schedules = [model.schedule(config.sampling_steps, config.height, config.width)]
    update = Update(lora_parameters(model.network), config.weight_decay, config.clip)
    precision = autocast("cpu", config.mixed_precision)
    seen = {"reward": always(reward)}
    return Lesson(config, model, texts, [], schedules, precision, seen, None, places), update


def settings(task: Task) -> Config:
    """A treatment's, with the offline term off, as the peers have it."""
    prompts = task.folder / "prompts.txt"
    prompts.write_text(PROMPT + "\n")
    return Config.model_validate(
        {
            "base": str(task.base),
            "prompts": prompts,
            "out": task.folder / "run",
            "seed": SEED,
            "batch": 1,
            "height": task.side,
            "width": task.side,
            "sampling_steps": task.steps,
            "last": task.last,
            "rank": task.rank,
            "offline_weight": 0.0,
            **{name: getattr(task, name) for name in FORMS},
        }
    )


if __name__ == "__main__":
    core.config.run_program(main, Task, prog="python -m benchmarks.our_step")
