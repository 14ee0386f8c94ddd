"""Images of the treated model in, a detector that has seen them labelled out.

A detector frozen for good is learnt by heart; people (or the miniature's oracle) label what the
model makes now, and the detector is fine-tuned on these mixed with the data it came from.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import seeds as seeding
from core.contracts import ArtifactMap, Images
from core.errors import UserError
from core.image_files import list_images
from core.images import read_images, to_uint8
from core.order import batch_indices
from core.samples import Record, Sample
from core.storage import read_lines
from data_balancing.annotator_command import annotate, read_masks, write_task
from detector.data import open_labelled
from detector.segformer import SegformerDetector, freeze
from treat.texts import Sampler
from treat.update import REFRESH


class Mixed(Sequence[Sample]):
    """Old and new samples in turn, the shorter side repeated: an equal share of each."""

    def __init__(self, old: Sequence[Sample], new: Sequence[Sample]):
        self.old, self.new = old, new

    def __len__(self) -> int:
        return 2 * max(len(self.old), len(self.new)) if len(self.old) else len(self.new)

    def __getitem__(self, index):  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if not len(self.old):
            return self.new[index]
        side = (self.old, self.new)[index % 2]
        return side[index // 2 % len(side)]


def labelled(
    folder: Path,
    images: Images,
    prompts: list[str],
    command: Sequence[str],
    stop: Callable[[], bool],
) -> list[Sample] | None:
    """Have the annotator label the images; None if `stop` asked to end early."""
    write_task(folder, images, prompts)
    if not annotate(folder, command, stop):
        return None
    masks = read_masks(folder, *images.shape[-2:])
    return to_samples(images, masks, prompts, folder.name)


def to_samples(images: Images, masks: ArtifactMap, prompts: list[str], name: str) -> list[Sample]:
    levels = (masks.clamp(0, 1) * 255).round().to(torch.uint8)[:, 0].cpu().numpy()
    samples = []
    for i, (image, mask, prompt) in enumerate(zip(to_uint8(images), levels, prompts, strict=True)):
        record = Record(key=f"{name}-{i:05d}", source="human", prompt=prompt, generator="treated")
        samples.append(Sample(record.key, image, mask, record))
    return samples


def read_labelled(folder: Path) -> list[Sample]:
    """The samples of an earlier refresh, from its folder."""
    prompts = [str(line["prompt"]) for line in read_lines(folder / "prompts.jsonl")]
    images = read_images(list_images(folder / "images"))
    masks = read_masks(folder, *images.shape[-2:])
    return to_samples(images, masks, prompts, folder.name)


def fine_tuned(
    detector: SegformerDetector,
    old: Sequence[Sample],
    new: Sequence[Sample],
    seed: int,
    tuning: Mapping[str, Any],
) -> SegformerDetector:
    """The same detector, learnt on with `tuning` for `fine_tune`; frozen again."""
    from detector.train import fine_tune  # the trainer needs more than a treat without refresh

    if not len(new):
        raise UserError("a refresh needs new labelled images: raise --refresh-images.")
    detector.frozen = False
    detector.requires_grad_(True)
    fine_tune(detector, Mixed(old, new), seed=seed, **tuning)
    return freeze(detector)


class Refresher:
    """Every `every` updates: draw, have labelled, fine-tune; the detector is changed in place."""

    def __init__(
        self,
        folder: Path,
        detector: SegformerDetector,
        data: Sequence[Path],
        command: Sequence[str],
        *,
        every: int,
        images: int,
        tuning: Mapping[str, Any],
        seed: int,
    ):
        self.folder, self.detector, self.command = folder, detector, command
        self.every, self.images, self.tuning, self.seed = every, images, tuning, seed
        self.old: Sequence[Sample] = open_labelled(data)[0] if data else []
        self.done: list[int] = []
        """The steps after which the detector was refreshed."""

    def due(self, step: int) -> bool:
        return step > 0 and step % self.every == 0 and step not in self.done

    def refresh(self, step: int, sampler: Sampler, stop: Callable[[], bool]) -> bool:
        """False if `stop` asked to end before the labels were there: do it again later."""
        images, prompts = self.drawn(step, sampler)
        samples = labelled(self._folder(step), images, prompts, self.command, stop)
        if samples is None:
            return False
        new = [sample for past in self.done for sample in read_labelled(self._folder(past))]
        learnt = [*new, *samples]
        fine_tuned(self.detector, self.old, learnt, seeding.mix(self.seed, step), self.tuning)
        return True

    def drawn(self, step: int, sampler: Sampler) -> tuple[Images, list[str]]:
        """What is to be labelled after this step, and the prompts."""
        train = sampler.texts.train
        rows = batch_indices(len(train), self.images, seeding.mix(self.seed, REFRESH), step)
        seeds = [seeding.mix(self.seed, REFRESH, step, i) for i in range(self.images)]
        return sampler(rows, seeds), sampler.texts.said(rows)

    def note(self, step: int) -> None:
        self.done.append(step)

    def state(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self.detector.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor], done: list[int]) -> None:
        self.done = list(done)
        if done:
            self.detector.load_state_dict(dict(tensors))

    def _folder(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"
