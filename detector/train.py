"""Train a detector: images with soft masks in, a folder that `load_detector` reads out.

    python -m detector.train --data shards real_photos --out runs/detector
    accelerate launch --num_processes 2 -m detector.train --config mit-b5-24gb --data ... --out ...
    diffdoctor detector train --data shards --variant mit_b5 --input-size 512 --out runs/detector

The paper's loss is the squared error of the sigmoid map (DiffDoctor, arXiv 2501.12382); its
learning rate, batch and steps are unpublished. The run folder resumes with the same command;
`detector/` in it is the result. On several processes the batch is still the global one.
Licences: transformers' SegFormer code is Apache-2.0; smp's MiT encoder file and the nvidia/mit-*
weights are for non-commercial use.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

import core.config
from core import checkpoint, inputs
from core.errors import UserError
from core.images import write_image
from core.memory import in_use
from core.processes import this_process
from core.run import PAUSED, Run
from core.samples import Record, Sample
from core.storage import check_writable
from core.wishes import MET
from detector.augmentation import Augmentation
from detector.data import (
    check_sizes,
    hold,
    mean_artifact,
    open_labelled,
    split_by_group,
    spread,
    to_tensors,
)
from detector.held_out import PICTURED, sheet, write_held_out
from detector.learning import Alignment, Learner, learn_step, learning_rate
from detector.measure import device, predict, predict_samples
from detector.metrics import all_metrics
from detector.names import LossName, OptimizerName
from detector.parallel import Share, own_share, share_out
from detector.quotas import Quotas, check_named, make_quotas
from detector.segformer import SegformerConfig, SegformerDetector, checkpoint_blocks
from detector.settings import Config
from detector.sources import Chosen, open_data
from detector.storage import LICENCE_NOTES, load_detector, save_detector


def main(config: Config) -> int | None:
    """Train to the end, or until a signal: then save and return `PAUSED`."""
    check_writable(config.out)
    share = own_share()
    share.check(batch=config.batch)
    if config.alignment:
        share.check(alignment_batch=config.alignment_batch, alignment_sound=config.alignment_sound)
    samples, records = open_data(config.data)
    check_named(config.quotas, records)
    samples, records = hold(samples, records)
    train, valid = _split(samples, records, config.valid_share, config.valid_limit, config.seed)
    check_sizes(config.size, train, valid)
    aligned = _aligned(config, train, [records[i] for i in train.positions])
    quotas = _quotas(config, [records[i] for i in train.positions])
    detector, place = _initial(config, train, share), _place(config.device, share)
    with Run.start(config, config.out, "detector train", share.main) as run:
        if share.main:
            of_data = {"data": config.data, "alignment_data": config.alignment_data}
            inputs.hold(run, {name: inputs.of_data(folders) for name, folders in of_data.items()})
        run.event("info", LICENCE_NOTES[detector.config.backend])
        learner = Learner(
            detector.to(place).train(), config.weight_decay, config.ema, config.optimizer
        )
        start = _resume(run, learner, share)
        for step in run.progress(range(start, config.steps), config.steps, start, "detector"):
            figures = learn_step(
                learner,
                train,
                config.augmentation,
                step=step,
                seed=config.seed,
                batch=config.batch,
                rate=_rate(config, step),
                clip=config.clip,
                loss=config.loss,
                size=config.size,
                autocast=config.mixed_precision == "bf16",
                alignment=aligned,
                quotas=quotas,
                share=share,
            )
            done, stop = step + 1, share.any(run.interrupted, place)
            if share.main:  # the others wait where they need it next
                asked = _asked(run, valid)
                if valid and (done % config.valid_every == 0 or done == config.steps):
                    figures |= _validate(run, learner, valid, config.size, config.batch, done)
                elif "sample" in asked:
                    _sample(run, learner, valid, config.size, done)
                run.log(done, **figures, **in_use(place))
                due = done % config.checkpoint_every == 0 or done == config.steps
                if stop or due or "save" in asked:
                    checkpoint.save(run.checkpoints, done, *learner.pack())
                for wish in sorted(asked):
                    run.event("info", f"{MET[wish]} after step {done}, as asked", step=done)
            if stop and done < config.steps:
                return PAUSED
        if share.main:
            _finish(run, learner, valid, config, records)
        return None


def fine_tune(
    detector: SegformerDetector,
    samples: Sequence[Sample],
    steps: int,
    seed: int = 0,
    *,
    batch: int = 16,
    learning_rate: float = 2e-4,
    loss: LossName = "mse",
    optimizer: OptimizerName = "adamw",
    augmentation: Augmentation | None = None,
) -> SegformerDetector:
    """Train the given detector (unfrozen, whole) in place for some steps; returns it in eval mode.

    The rate falls linearly to zero; a pure function of its arguments.
    """
    if not len(samples):
        raise UserError("a detector cannot learn from no sample; give it labelled images.")
    if detector.frozen:
        raise ValueError("the detector is frozen; give it its gradients back first")
    learner = Learner(detector.train(), optimizer=optimizer)
    for step in range(steps):
        learn_step(
            learner,
            samples,
            augmentation or Augmentation(),
            step=step,
            seed=seed,
            batch=batch,
            rate=learning_rate * (1 - step / steps),
            loss=loss,
        )
    detector.zero_grad(set_to_none=True)
    return detector.eval()


def _aligned(
    config: Config, samples: Sequence[Sample], records: Sequence[Record]
) -> Alignment | None:
    """A prompt that is held out teaches nothing, in whichever folder it stands."""
    taught = samples
    if config.alignment and config.alignment_data:
        given, said = open_labelled(config.alignment_data)
        check_sizes(config.size, given)
        positions = split_by_group(said, config.valid_share, config.seed)[0]
        taught, records = Chosen(given, positions), [said[i] for i in positions]
        sizes = {samples[0].image.shape, given[0].image.shape}
        if config.alignment_sound and config.size is None and len(sizes) > 1:
            raise UserError("--alignment-data has images of another size: give one with --size.")
    return Alignment.among(
        taught,
        records,
        config.alignment,
        config.alignment_batch,
        config.alignment_share,
        config.alignment_sound,
    )


def _split(
    samples: Sequence[Sample], records: Sequence[Record], share: float, limit: int, seed: int
) -> tuple[Chosen, Chosen]:
    train, valid = split_by_group(records, share, seed)
    if not train:
        raise UserError("all prompts fell to the held-out side; add data or lower --valid-share.")
    return Chosen(samples, train), Chosen(samples, [valid[i] for i in spread(len(valid), limit)])


def _initial(config: Config, train: Sequence[Sample], share: Share) -> SegformerDetector:
    if config.init is not None:
        detector = load_detector(config.init)
    else:
        network = SegformerConfig(
            backend=config.backend,
            variant=config.variant,
            input_size=config.input_size,
            upscale=config.upscale,
            prior=config.prior or mean_artifact(train),
        )
        detector = SegformerDetector(network, seed=config.seed)
    if config.checkpoint_blocks:
        checkpoint_blocks(detector)
    share_out(detector, share)
    return detector


def _quotas(config: Config, records: Sequence[Record]) -> Quotas | None:
    """None: every sample as often as any other."""
    if not (config.quotas or config.even_categories):
        return None
    return make_quotas(records, config.quotas, config.even_categories)


def _place(name: str, share: Share) -> torch.device:
    """Each of several processes has a device of its own."""
    own = this_process().device if share.of > 1 and name == "auto" else None
    return own or device(name)


def _rate(config: Config, step: int) -> float:
    shape = config.warmup, config.decay, config.power
    return learning_rate(step, config.steps, config.learning_rate, *shape)


def _resume(run: Run, learner: Learner, share: Share) -> int:
    """The step to go on from, the same on every process; raises `UserError` where it is not."""
    share.equalise(learner.model)
    with share.main_first():  # which sets a damaged checkpoint aside
        saved = checkpoint.load_newest(run.checkpoints, lambda text: run.event("warn", text))
    if saved is not None:
        learner.unpack(saved.tensors, saved.state)
    start = 0 if saved is None else saved.step
    place = next(learner.model.parameters()).device
    if share.mean([start], place) != [start]:
        raise UserError(
            f"{run.folder} is not the same on every machine: put --out where all see it."
        )
    return start


def _asked(run: Run, valid: Sequence[Sample]) -> frozenset[str]:
    """A person's wishes; where no image is held out there is none to draw."""
    asked = run.wishes()
    if "sample" in asked and not len(valid):
        run.event("warn", "no image is held out, so none can be drawn, as asked")
        asked -= {"sample"}
    return asked


def _validate(
    run: Run, learner: Learner, valid: Sequence[Sample], size: int | None, batch: int, step: int
) -> dict[str, float]:
    """Figures of the averaged weights under `valid/`, and a sheet of the first images."""
    with learner.averaged() as detector:
        maps, target = predict_samples(detector, valid, batch, size)
    n = min(PICTURED, len(valid))
    images, _ = to_tensors([valid[i] for i in range(n)], size)
    write_image(run.pictures / f"step-{step:08d}.png", sheet(images, target[:n], maps[:n]))
    return {f"valid/{name}": value for name, value in all_metrics(maps, target).items()}


def _sample(
    run: Run, learner: Learner, valid: Sequence[Sample], size: int | None, step: int
) -> None:
    """The sheet alone, for whoever asked for it between two measurements."""
    n = min(PICTURED, len(valid))
    images, target = to_tensors([valid[i] for i in range(n)], size)
    with learner.averaged() as detector:
        maps = predict(detector, images, n)
    write_image(run.pictures / f"step-{step:08d}.png", sheet(images, target, maps))


def _finish(
    run: Run, learner: Learner, valid: Chosen, config: Config, records: Sequence[Record]
) -> None:
    """Export the averaged weights as `detector/`; write what they make of the held-out images."""
    figures, counts = {}, _counted(records)
    with learner.averaged() as detector:
        if len(valid):
            maps, target = predict_samples(detector, valid, config.batch, config.size)
            figures = all_metrics(maps, target)
            held = [records[i] for i in valid.positions]
            write_held_out(run.folder, valid, held, maps, target, size=config.size)
        card = {
            "data": [path.resolve().name for path in config.data],
            "samples": counts,
            "seed": config.seed,
            "steps": config.steps,
            "loss": config.loss,
            "optimizer": config.optimizer,
            "learning_rate": config.learning_rate,
            "augmentation": config.augmentation.model_dump(),
            "quotas": config.quotas,
            "even_categories": config.even_categories,
            "alignment": config.alignment,
            "alignment_share": config.alignment_share,
            "alignment_batch": config.alignment_batch,
            "alignment_sound": config.alignment_sound,
            "alignment_data": [path.resolve().name for path in config.alignment_data],
            "initial": None if config.init is None else config.init.resolve().name,
            "held_out": figures,
        }
        save_detector(detector, run.folder / "detector", card)
    run.summary({"detector": "detector", "samples": counts, "held_out": figures})
    run.event("info", f"the detector is in {run.folder / 'detector'}")


def _counted(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "number": len(records),
        "sources": dict(sorted(Counter(record.source for record in records).items())),
        "categories": dict(sorted(Counter(record.category for record in records).items())),
        "generators": dict(sorted(Counter(record.generator for record in records).items())),
    }


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m detector.train")
